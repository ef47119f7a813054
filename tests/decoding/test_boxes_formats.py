"""What trackers and annotators write as boxes files: every spelling is read as the boxes it means, or refused by its name."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decoding.boxes import Tracks, boxes_remarks, read_boxes
from pipeline.errors import VideoError
from pipeline.storage.location import resolve

FIELD = Path(__file__).parents[2].parent / "shared/data/field"

Boxes = dict[tuple[int, int], tuple[float, ...]]  # (frame from 0, track): (x, y, w, h)

# Two people over three frames, in quarters of a pixel, which all forms of a box keep exactly.
PEOPLE: Boxes = {
    (0, 1): (100.0, 50.25, 40.5, 120.0),
    (1, 1): (104.5, 50.0, 40.5, 121.0),
    (1, 2): (-3.25, 60.0, 33.0, 99.5),
    (2, 2): (0.0, 61.0, 33.5, 99.0),
}


def _read(text: str | bytes) -> Boxes:
    return _boxes(read_boxes(text if isinstance(text, bytes) else text.encode()))


def _boxes(tracks: Tracks) -> Boxes:
    return {
        (int(frame), track): tuple(map(float, box))
        for track, (frames, boxes) in tracks.items()
        for frame, box in zip(frames, boxes, strict=True)
    }


def _lines(template: str, **constants: Any) -> str:
    """One line a box of PEOPLE, by a template of str.format with the frame from 1 and from 0, and the box in all forms."""
    return "".join(
        template.format(
            frame=frame + 1,
            frame0=frame,
            id=track,
            x=x,
            y=y,
            w=w,
            h=h,
            x2=x + w,
            y2=y + h,
            cx=x + w / 2,
            cy=y + h / 2,
            **constants,
        )
        + "\n"
        for (frame, track), (x, y, w, h) in PEOPLE.items()
    )


def _refusal(text: str | bytes) -> str:
    with pytest.raises(VideoError) as refused:
        _read(text)
    assert refused.value.reason == "boxes_invalid"
    return refused.value.message


class TestTrackers:
    """One test a writer, by the template that its source or documentation has."""

    @pytest.mark.parametrize(
        "template",
        [
            pytest.param("{frame},{id},{x},{y},{w},{h},0.87,-1,-1,-1", id="ByteTrack"),
            pytest.param("{frame},{id},{x},{y},{w},{h},0.0,-1,-1,-1", id="scores of 0.0"),
            pytest.param("{frame},{id},{x:.2f},{y:.2f},{w:.2f},{h:.2f},1,-1,-1,-1", id="SORT and DeepSORT"),
            pytest.param("{frame},{id},{x},{y},{w},{h},-1,-1,-1,-1", id="Norfair"),
            pytest.param("{frame},{id},{x},{y},{w},{h},0.87,2,-1,-1", id="multi-class ByteTrack"),
            pytest.param("{frame} {id} {x:g} {y:g} {w:g} {h:g} -1 -1 -1 -1 ", id="Yolov5_DeepSort, later BoxMOT"),
            pytest.param("{frame} {id} {x} {y} {w} {h} 0 2 -1", id="BoxMOT with all as integers: scores of 0, classes of COCO"),
            pytest.param("{frame},{id},{x},{y},{w},{h},1,0,0.878290", id="BoxMOT with COCO's class of people"),
            pytest.param("{frame},{id},{x},{y},{w},{h},1,1,0.878290", id="BoxMOT with classes from 1"),
            pytest.param("{frame}, {id}, {x}, {y}, {w}, {h}, 1, -8.66, -2.1, 0", id="MOT15 with places in the world"),
            pytest.param("{frame},{id},{x},{y},{w},{h},1,1,1", id="DanceTrack and SportsMOT ground truth"),
            pytest.param("{frame}\t{id}\t{x}\t{y}\t{w}\t{h}\t1\t1\t0.5\t0", id="ten columns with tabs"),
            pytest.param("{frame},{id},{x},{y},{w},{h},0.9,-1,-1,-1,head", id="eleven columns"),
            pytest.param("{frame},{id},{x},{y},{w},{h},1,1,0,0", id="VisDrone with people only"),
        ],
    )
    def test_lines_without_a_header_are_all_read(self, template: str) -> None:
        tracks = read_boxes(_lines(template).encode())
        assert _boxes(tracks) == PEOPLE
        assert (tracks.left_out, boxes_remarks(tracks)) == ({}, [])

    def test_supervision_with_a_class_name_and_the_frame_as_custom_data(self) -> None:
        file = io.StringIO(newline="")
        columns = ["x_min", "y_min", "x_max", "y_max", "class_id", "confidence", "tracker_id", "class_name", "frame_index"]
        writer = csv.writer(file)
        writer.writerow(columns)
        for (frame, track), (x, y, w, h) in PEOPLE.items():
            writer.writerow([x, y, x + w, y + h, 0, 0.91, track, "person", frame])
        writer.writerow([5, 5, 50, 50, 2, 0.5, 9, "car", 1])
        tracks = read_boxes(file.getvalue().encode())
        assert _boxes(tracks) == PEOPLE
        assert boxes_remarks(tracks) == [
            "1 box of the boxes file was left out: 1 of other classes than people",
            "frames of the boxes file were counted from 0, since their column is named an index",
        ]

    def test_the_names_of_py_motmetrics(self) -> None:
        header = "FrameId,Id,X,Y,Width,Height,Confidence,ClassId,Visibility\n"
        rows = _lines("{frame},{id},{x},{y},{w},{h},1,1,0.9") + "1,5,0,0,50,50,0,1,1\n1,6,0,0,50,50,1,3,1\n1,7,0,0,50,50,1,7,1\n"
        tracks = read_boxes((header + rows).encode())
        assert _boxes(tracks) == {**PEOPLE, (0, 7): (0, 0, 50, 50)}
        assert tracks.left_out == {"marked not to be considered (conf 0)": 1, "of other classes than people": 1}

    def test_the_names_of_the_mot_challenge_whose_x_and_y_are_places_in_the_world(self) -> None:
        header = "frame,id,bb_left,bb_top,bb_width,bb_height,conf,x,y,z\n"
        assert _read(header + _lines("{frame},{id},{x},{y},{w},{h},1,7.5,8.5,0")) == PEOPLE

    @pytest.mark.parametrize(
        ("header", "template"),
        [
            ("timestamp,frame_id,track_id,class,confidence,x1,y1,x2,y2", "0.1,{frame},{id},person,0.8,{x},{y},{x2},{y2}"),
            ("frame_id,track_id,x,y,w,h,score,timestamp", "{frame},{id},{x},{y},{w},{h},0.93,0.1"),
            ("frame;left;top;right;bottom;id", "{frame};{x};{y};{x2};{y2};{id}"),
            ("frame id x y w h", "{frame}  {id} {x} {y} {w} {h}"),
            ("# frame id x y w h", "{frame} {id} {x} {y} {w} {h}"),
            ("Frame No\tTrack ID\tBox Left\tBox Top\tBox Width\tBox Height", "{frame}\t{id}\t{x}\t{y}\t{w}\t{h}"),
            ('# frame_id, track_id, x, y, w, h, "not ignored"', "{frame},{id},{x},{y},{w},{h},1"),
            ('"","frame","track","xmin","ymin","xmax","ymax"', "7,{frame},{id},{x},{y},{x2},{y2}"),
            ("id,frame,track_id,x_center,y_center,width,height", "77,{frame},{id},{cx},{cy},{w},{h}"),
            ("frame,bbox_id,object_id,bbox_x0,bbox_y0,bbox_x1,bbox_y1", "{frame},77,{id},{x},{y},{x2},{y2}"),
            ("frame,target_id,cx,cy,x1,y1,w,h", "{frame},{id},{cx},{cy},{x},{y},{w},{h}"),
            ("frame_idx,track_id,class_id,conf,x1,y1,x2,y2", "{frame0},{id},0,0.5,{x},{y},{x2},{y2}"),
            ("frame,id,x,y,w,h,class", "{frame},{id},{x},{y},{w},{h},-1"),
            ("frame,id,x,y,w,h,class", "{frame},{id},{x},{y},{w},{h},"),
            ("frame,id,x,y,w,h,class", '{frame},{id},{x},{y},{w},{h}, "Pedestrian" '),
            ("frame,id,x,y,w,h,score", "{frame},{id},{x},{y},{w},{h},0"),
        ],
    )
    def test_a_header_is_obeyed(self, header: str, template: str) -> None:
        tracks = read_boxes(f"{header}\n{_lines(template)}".encode())
        assert _boxes(tracks) == PEOPLE
        assert tracks.left_out == {}


class TestHeaders:
    @settings(deadline=None)
    @given(st.data())
    def test_any_order_form_and_separator_reads_back(self, data: st.DataObject) -> None:
        quarters = st.integers(-(2**14), 2**14).map(lambda n: n / 4)
        sides = st.integers(8, 2**14).map(lambda n: n / 4)
        keys = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))
        boxes = data.draw(st.dictionaries(keys, st.tuples(quarters, quarters, sides, sides), min_size=1, max_size=9))
        frame_name, first = data.draw(st.sampled_from([("frame", 1), ("Frame_ID", 1), ("FRAME", 1), ("frame_index", 0)]))
        id_name = data.draw(st.sampled_from(["id", "track_id", "TrackID", "tracker-id"]))
        form = data.draw(
            st.sampled_from(["x y w h", "bb_left bb_top bb_width bb_height", "x1 y1 x2 y2", "xmin ymin xmax ymax", "cx cy w h"])
        )
        names = data.draw(st.permutations([frame_name, id_name, *form.split(), "note"]))
        separator = data.draw(st.sampled_from([",", ";", "\t", " ", "   ", " , ", " \t"]))
        end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
        lines = [separator.join(names)]
        for (frame, track), (x, y, w, h) in boxes.items():
            a, b, c, d = form.split()
            row = {frame_name: frame + first, id_name: track, "note": "n/a", a: x, b: y, c: w, d: h}
            if form[-1] in "2x":
                row |= {c: x + w, d: y + h}
            if form.startswith("c"):
                row |= {a: x + w / 2, b: y + h / 2}
            lines.append(separator.join(str(row[name]) for name in names))
        mark = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
        assert _read(mark + end.join([*lines, ""]).encode()) == boxes

    @pytest.mark.parametrize(
        ("header", "sentence"),
        [
            ("frame,x,y,w,h", "line 1 of the boxes file, its header, names no column for id: it has frame, x, y, w, h;"),
            ("id,x1,y1,x2,y2", "no column for frame: it has id"),
            ("frame,id,x,y,w", "no column for the box"),
            ("frame,id,x1,y1,h,w2", "no column for the box"),
            ("frame,box_id,x,y,w,h", "no column for id"),
            ("a,b,c,d,e,f", "no column for frame and id and the box"),
            ("frame,frame,id,x,y,w,h", "names frame more than once"),
        ],
    )
    def test_a_header_that_lacks_a_column_is_refused_by_its_names(self, header: str, sentence: str) -> None:
        assert sentence in _refusal(header + "\n1,1,1,1,1,1\n")

    def test_a_row_with_a_column_that_the_header_does_not_name_is_refused(self) -> None:
        assert "line 2 of the boxes file has 7 columns; the header has 6" in _refusal("frame,id,x,y,w,h\n9,1,1,0,0,5,5\n")
        assert "line 3 of the boxes file has 7 columns; the rows before have 6" in _refusal(
            "frame,id,x,y,w,h\n1,1,0,0,5,5\n2,1,0,0,5,5,9\n"
        )

    def test_faults_below_a_header_are_named_by_its_names_and_the_line(self) -> None:
        assert "line 3 of the boxes file: ymax is 'y', not a number" in _refusal(
            "id,frame,xmin,ymin,xmax,ymax\n1,1,0,0,5,5\n1,2,0,0,5,y\n"
        )
        assert "line 2 of the boxes file has a width or height that is not positive" in _refusal(
            "id,frame,xmin,ymin,xmax,ymax\n1,1,10,10,5,50\n"
        )
        assert "line 3 of the boxes file has a frame below 1; frames count from 1" in _refusal(
            "frame,id,x,y,w,h,class\n1,1,0,0,9,9,car\n0,1,0,0,9,9,person\n"
        )
        assert "line 2 of the boxes file has a frame below 0" in _refusal("frame_index,id,x,y,w,h\n-1,1,0,0,9,9\n")

    def test_frames_of_an_index_count_from_0_even_if_none_is_0(self) -> None:
        tracks = read_boxes(b"frame_index,id,x,y,w,h\n5,1,0,0,9,9\n")
        assert _boxes(tracks) == {(5, 1): (0, 0, 9, 9)}
        assert boxes_remarks(tracks) == ["frames of the boxes file were counted from 0, since their column is named an index"]


class TestWhoCounts:
    ROWS = st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 13), st.integers(0, 100).map(lambda n: n / 100)), min_size=1, max_size=30
    )

    @settings(deadline=None)
    @given(ROWS, st.booleans(), st.sampled_from([",", " ", ";", "\t"]))
    def test_ground_truth_of_the_mot_challenge_gives_its_people_and_counts_the_rest(
        self, rows: list[tuple[int, int, float]], named: bool, separator: str
    ) -> None:
        text = "frame,id,x,y,w,h,conf,class,visibility\n".replace(",", separator) if named else ""
        expected, unmarked, others = set(), 0, 0
        for number, (conf, category, visibility) in enumerate(rows):
            text += separator.join(map(str, [1, number, 10, 10, 40, 100, conf, category, visibility])) + "\n"
            if conf == 0:
                unmarked += 1
            elif category in (1, 2, 7):
                expected.add(number)
            else:
                others += 1
        if not expected:
            assert f"{unmarked + others} box" in _refusal(text)
            return
        tracks = read_boxes(text.encode())
        assert set(tracks) == expected
        assert tracks.left_out.get("marked not to be considered (conf 0)", 0) == unmarked
        assert tracks.left_out.get("of other classes than people", 0) == others

    @pytest.mark.parametrize(
        ("tails", "kept", "left_out"),
        [
            pytest.param(["person", "car", "Person"], [0, 2], {"of other classes than people": 1}, id="words"),
            pytest.param(["0", "2", "0"], [0, 2], {"of other classes than people (taken to be class 0)": 1}, id="COCO's 80"),
            pytest.param(["1", "3", "2"], [0], {"of other classes than people (taken to be class 1)": 2}, id="numbers from 1"),
            pytest.param(["person", "", "-1"], [0], {"of other classes than people (taken to be class 1)": 2}, id="some empty"),
        ],
    )
    def test_a_named_class_is_obeyed(self, tails: list[str], kept: list[int], left_out: dict[str, int]) -> None:
        rows = "".join(f"1,{track},0,0,9,9,{tail}\n" for track, tail in enumerate(tails))
        tracks = read_boxes(f"frame,id,x,y,w,h,class\n{rows}".encode())
        assert (list(tracks), tracks.left_out) == (kept, left_out)

    def test_a_named_conf_is_a_mark_where_it_is_0_or_1_and_both_occur(self) -> None:
        def left_out(*confs: str) -> dict[str, int]:
            rows = "".join(f"1,{track},0,0,9,9,{conf}\n" for track, conf in enumerate(confs))
            return read_boxes(f"frame,id,x,y,w,h,conf\n{rows}".encode()).left_out

        assert left_out("1", "0", "1.0") == {"marked not to be considered (conf 0)": 1}
        assert left_out("1", "0", "0.5") == left_out("0", "0") == left_out("1", "") == {}

    @pytest.mark.parametrize("tail", ["0,3,-1", "0.5,3,0.5", "0,3,1.5", "0,2.5,1", "0,car,1", "2,3,1", "0,-1,1"])
    def test_nine_columns_are_ground_truth_only_if_every_row_fits(self, tail: str) -> None:
        text = f"1,1,0,0,9,9,1,1,1\n1,2,0,0,9,9,{tail}\n".encode()
        assert (list(read_boxes(text)), read_boxes(text).left_out) == ([1, 2], {})

    def test_class_0_means_people_only_among_the_rows_that_are_to_be_considered(self) -> None:
        tracks = read_boxes(b"1,1,0,0,9,9,1,1,1\n1,2,0,0,9,9,0,0,1\n1,3,0,0,9,9,1,4,1\n")
        assert list(tracks) == [1]

    def test_of_rows_that_are_left_out_only_the_numbers_are_checked(self) -> None:
        assert list(read_boxes(b"1,1,0,0,9,9,1,1,1\n1,1,0,0,9,0,0,8,1\n")) == [1]
        assert "line 2 of the boxes file: h is 'x', not a number" in _refusal("1,1,0,0,9,9,1,1,1\n1,1,0,0,9,x,0,8,1\n")

    def test_faults_after_rows_that_are_left_out_are_named_with_their_line(self) -> None:
        rows = "1,1,0,0,9,9,1,3,1\n1,2,0,0,9,9,1,1,1\n1,1,0,0,9,9,1,3,1\n"
        assert "line 4 of the boxes file gives track 2 a second box" in _refusal(rows + "1,2,0,0,9,9,1,1,1\n")
        assert "line 4 of the boxes file has a frame below 1" in _refusal(rows + "0,2,0,0,9,9,1,1,1\n")

    def test_classes_of_a_file_that_is_parsed_in_parts(self) -> None:
        half = 40_000  # lines: more than Arrow takes at a time, so that the second part holds other classes than the first
        rows = [f"{number + 1},{number},0,0,9,9,1,{1 if number < half else 3},0.5\n" for number in range(2 * half)]
        tracks = read_boxes("".join(rows).encode())
        assert list(tracks) == list(range(half))
        assert tracks.left_out == {"of other classes than people": half}

    def test_a_file_without_people_is_refused_with_its_classes(self) -> None:
        message = _refusal("frame,id,x,y,w,h,label\n1,1,0,0,9,9,car\n1,2,0,0,9,9,dog\n")
        assert message.startswith(
            "2 boxes of the boxes file were left out: 2 of other classes than people; none is left (classes: car, dog)"
        )

    @pytest.mark.shared
    def test_the_files_of_the_field(self) -> None:
        if not FIELD.exists():
            pytest.skip(f"{FIELD.name} is not in ../shared")
        swapped = read_boxes(resolve(FIELD / "swapped.txt"))
        assert _boxes(swapped) == {(frame, 7): (10, 10, 40, 100) for frame in range(29)}
        people = read_boxes(resolve(FIELD / "mot17.txt"))
        assert {track: len(frames) for track, (frames, _) in people.items()} == {1: 29, 3: 29}
        assert boxes_remarks(people) == ["58 boxes of the boxes file were left out: 58 marked not to be considered (conf 0)"]
        cut = read_boxes(resolve(FIELD / "cut.txt"))
        assert _boxes(cut) == {(frame, 1): (0, 0, 320, 240) for frame in range(40, 80)}


class TestOtherFormats:
    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("0 0.339246 0.640001 0.0464199 0.219422 5\n", "line 1 of the boxes file looks like a label of YOLO"),
            ("0 0.339246 0.640001 0.0464199 0.219422\n", "looks like a label of YOLO"),
            ("0 0.339246 0.640001 0.0464199 0.219422 0.91 5\n", "looks like a label of YOLO"),
            ("1 3 0.25 0.25 0.5 0.5\n2 3 0.25 0.125 0.5 0.75\n", "looks like normalised coordinates (YOLO)"),
            ("8 1 0.649219 0.322266 0.659375 0.355469 0.978906 0.500000\n", "looks like normalised coordinates (YOLO)"),
            ("frame,id,x1,y1,x2,y2\n1,1,0.1,0.1,0.5,1.0\n", "looks like normalised coordinates (YOLO)"),
            ("1,1,0,0,1,1\n", "looks like normalised coordinates (YOLO)"),
            ("0 0 Pedestrian 0 0 -1.57 10.0 20.0 50.0 120.0 1.8 0.5 0.9 1.0 1.5 9.0 0.1\n", "looks like a label of KITTI"),
            ("1 5 car 0 0 -10 10.0 20.0 50.0 90.0 -10 -10 -10 -1000 -1000 -1000 -10\n", "looks like a label of KITTI"),
            ("Car 0.0 0 -1.57 10.0 20.0 50.0 120.0 1.8 0.5 0.9 1.0 1.5 9.0 0.1\n", "looks like a label of KITTI"),
            ("1,1,593,43,174,190,1,4,0,0\n1,2,0,0,50,90,1,1,1,2\n", "looks like annotations of VisDrone"),
            (json.dumps({"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}]}), "looks like JSON, as of COCO"),
            ("\n[\n1]", "looks like JSON"),
            ('\ufeff<?xml version="1.0"?><annotations/>', "looks like XML"),
        ],
    )
    def test_a_file_of_another_format_is_refused_by_its_name(self, text: str, sentence: str) -> None:
        assert sentence in _refusal(text)

    def test_what_a_message_quotes_cannot_steer_a_terminal(self) -> None:
        for text in ("frame,\x1b[2J,x,y,w,h\n", "frame,id,x,y,w,h,label\n1,1,0,0,9,9,\x1b[2J\n", "1,1,0,0,9,\x1b[2J\n"):
            assert _refusal(text).isprintable()
            assert "\\x1b[2J" in _refusal(text)

    def test_archives_and_wide_characters_are_refused_by_their_name(self) -> None:
        assert "looks like a zip archive" in _refusal(b"PK\x03\x04\x14\0\0\0")
        assert "looks like UTF-16 text" in _refusal("1,1,0,0,5,5\n".encode("utf-16"))

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("1,1,593,43,174,190,1,4,0,3\n", id="no occlusion of VisDrone"),
            pytest.param("1,1,593,43,174,190,1,12,0,0\n", id="no category of VisDrone"),
            pytest.param("1,1,593,43,174,190,1,0,0,0\n", id="zeros to fill ten columns"),
            pytest.param("1,1,0.1,0.1,0.5,0.9\n1,2,0.1,0.1,0.5,2\n", id="one side above a pixel"),
            pytest.param("1,1,-50,0,1,1\n", id="one pixel outside the frame"),
        ],
    )
    def test_what_only_resembles_another_format_is_read(self, text: str) -> None:
        assert len(_read(text)) == text.count("\n")
