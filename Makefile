# The commands of the README. Everything runs in the checkout's .venv, which the first command makes.
PYTHON ?= python3
BIN := .venv/bin
# Where this is set, as in many containers, each of the hundreds of processes that the tests start would compile these packages anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env demo test test-page check format bench bench-scoring bench-scale bench-ingest bench-recordings bench-tracking drills clean

help:
	@echo "make demo    render recordings of a small camera network, find, index and search the people in them; writes demo/report.html"
	@echo "make test    every test that needs neither a GPU nor a browser; make test-page those of the page and the report, in Debian's chromium"
	@echo "make check   ruff, mypy, the order of imports and the tests; make format puts what ruff can in order"
	@echo "make bench   accuracy on the real footage in ../shared, and the default backbone beside its teacher"
	@echo "make bench-scoring, bench-scale, bench-ingest"
	@echo "             scoring beside its peers and its limit; galleries of 10,000 to VIDEOS; ingest beside a plain loop"
	@echo "make bench-tracking"
	@echo "             tracks of people in real footage against its ground truth, beside ByteTrack; what a day of a camera costs"
	@echo "make drills  kills on a real two-node cluster, hostile videos, a faulty object store and a day of cameras, at length"

env:
	@$(PYTHON) .ci/environment.py

demo: env
	@$(BIN)/python -m jobs.demo

# Tests run beside each other: threads of OpenMP and OpenBLAS that wait are not to keep a core busy (the latter can only be left
# out), and Ray is not to put its workers behind all other processes. For how files are shared out, see tests/conftest.py.
test: export OMP_WAIT_POLICY = passive
test: export OPENBLAS_NUM_THREADS = 1
test: export RAY_worker_niceness = 0
test: env
	@$(BIN)/python -X faulthandler -m pytest -m "not gpu and not browser" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# A browser wants the machine for itself: beside other tests it is too slow to be judged.
test-page: env
	@$(BIN)/python -X faulthandler -m pytest -m browser $(PAGE) tests/service tests/search

check: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory test

format: env
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: env
	@$(BIN)/python -m benchmarks.real_footage
	@$(BIN)/python -m benchmarks.default_backbone

bench-scoring: env
	@$(BIN)/python -m benchmarks.scoring

VIDEOS ?= 100000
bench-scale: env
	@$(BIN)/python -m benchmarks.scale --work bench --videos 10000 --videos $(VIDEOS)

bench-ingest: env
	@$(BIN)/python -m benchmarks.ingest

bench-recordings: env
	@$(BIN)/python -m benchmarks.recordings

bench-tracking: env
	@$(BIN)/python -m benchmarks.tracking --picture bench/tracking/tracks.png
	@$(BIN)/python -m benchmarks.camera_day

drills: env
	@$(BIN)/python -m benchmarks.kill_drill --work drills
	@$(BIN)/python -m benchmarks.hostile_drill
	@$(BIN)/python -m benchmarks.store_drill
	@$(BIN)/python -m benchmarks.footage_drill --work drills/footage --minutes 600

clean:
	rm -rf .venv demo bench drills hostile_failures .pytest_cache .mypy_cache .ruff_cache .hypothesis
