/* Logits of all pairs of target and candidate segments, on one CPU core; see pipeline/pair_kernel.py and pipeline/scoring.py.

Written once for every storage type and vector width: the file includes itself with other macros. A vector holds LANES target
segments, so that whatever belongs to a candidate frame is one broadcast number and nothing is ever added up across a vector.
*/
#ifndef TYPE

#define _GNU_SOURCE /* for preadv2 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, SUFFIX)
#define INLINE static inline __attribute__((always_inline))

#ifdef __F16C__
#include <immintrin.h>
#endif

/* float16 -> float32; compilers of today leave this loop scalar where F16C is all there is. */
INLINE void widen_half(const _Float16 *from, float *to, int64_t count) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
  for (; i < count; i++) to[i] = (float)from[i];
}

INLINE void widen_single(const float *from, float *to, int64_t count) { memcpy(to, from, 4 * count); }

#define TILE 128 /* frames whose products are held at a time, and more where a segment is longer */
#define ROWS 24  /* frames that are widened at a time */
#define MANY 8   /* frames that are multiplied by one vector of target segments, and */
#define FEW 6    /* by PANEL vectors at a time */
#ifdef __AVX512F__
#define PANEL 4 /* 24 sums in 32 registers */
#else
#define PANEL 2 /* 12 sums in 16 registers */
#endif

#define CHUNK 512    /* rows that are copied from files before they are scored: they stay in the second-level cache */
#define LONGEST 4096 /* rows of a video that is */
#define ARRAYS 3     /* keys, values, band */

/* Whether a range of a file was in the page cache and is copied. Nothing is waited for; the system may begin to read what is not. */
static int copied(int file, char *to, int64_t size, int64_t at) {
#ifdef RWF_NOWAIT
  while (size > 0) {
    struct iovec place = {to, (size_t)size};
    ssize_t got = preadv2(file, &place, 1, at, RWF_NOWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    to += got, at += got, size -= got;
  }
#endif
  return size == 0;
}

#define TYPE _Float16
#define WIDEN widen_half
#define LANES 8
#define SUFFIX _half_8
#include "pair_kernel.c"
#undef LANES
#undef SUFFIX
#define LANES 16
#define SUFFIX _half_16
#include "pair_kernel.c"
#undef TYPE
#undef WIDEN
#undef LANES
#undef SUFFIX
#define TYPE float
#define WIDEN widen_single
#define LANES 8
#define SUFFIX _single_8
#include "pair_kernel.c"
#undef LANES
#undef SUFFIX
#define LANES 16
#define SUFFIX _single_16
#include "pair_kernel.c"

#else

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * LANES)));
#define VEC NAME(vec)
#define IVEC NAME(ivec)

INLINE VEC NAME(select)(IVEC mask, VEC yes, VEC no) { return (VEC)(((IVEC)yes & mask) | ((IVEC)no & ~mask)); }

/* e^x for x <= 0, to 2 units in the last place. */
INLINE VEC NAME(exponential)(VEC x) {
  VEC low = x - x - 87.0f;
  x = NAME(select)(x < low, low, x); /* so that NaN stays NaN */
  VEC shifted = x * 1.44269504f + 12582912.0f; /* rounds to an integer in the last bits */
  VEC whole = shifted - 12582912.0f;
  VEC rest = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  VEC sum = rest * 1.3888889e-3f + 8.3333333e-3f;
  sum = sum * rest + 4.1666667e-2f;
  sum = sum * rest + 1.6666667e-1f;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  IVEC power = ((IVEC)shifted - 0x4b400000 + 127) << 23;
  return sum * (VEC)power;
}

/* out[r][v] = sum_d rows[r][d] * table[d][v] + added[r], for `count` rows and `vectors` vectors of target segments: all sums stay
in registers. */
INLINE void NAME(multiply)(const float *rows, int64_t width, const VEC *table, int64_t stride, const float *added, VEC *out,
                           const int count, const int vectors) {
  VEC sums[MANY][PANEL];
#pragma GCC unroll 8
  for (int r = 0; r < count; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sums[r][v] = (VEC){0} + added[r];
  for (int64_t d = 0; d < width; d++) {
    VEC column[PANEL];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) column[v] = table[d * stride + v];
#pragma GCC unroll 8
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sums[r][v] += rows[r * width + d] * column[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < count; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) out[r * stride + v] = sums[r][v];
}

/* The same for ROWS rows and any number of vectors. */
INLINE void NAME(multiply_all)(const float *rows, int64_t width, const VEC *table, int64_t stride, const float *added, VEC *out) {
  int64_t v = 0;
  for (; v + PANEL <= stride; v += PANEL)
    for (int r = 0; r < ROWS; r += FEW)
      NAME(multiply)(rows + r * width, width, table + v, stride, added + r, out + r * stride + v, FEW, PANEL);
  for (; v < stride; v++)
    for (int r = 0; r < ROWS; r += MANY)
      NAME(multiply)(rows + r * width, width, table + v, stride, added + r, out + r * stride + v, MANY, 1);
}

/* Heat and squared distance (less what belongs to the target) of frames first .. first + count - 1, [count][stride] vectors; up to
ROWS - 1 rows more are written. */
static void NAME(products)(const TYPE *keys, const TYPE *values, int64_t d_k, int64_t d_v, int64_t first, int64_t count,
                           const VEC *queries, const VEC *weighted, int64_t stride, const float *weight, const float *centre,
                           float *scratch, VEC *heat, VEC *distance) {
  for (int64_t row = 0; row < count; row += ROWS) {
    int64_t rows = count - row < ROWS ? count - row : ROWS;
    const TYPE *key = keys + (first + row) * d_k, *value = values + (first + row) * d_v;
    float squares[ROWS] = {0};
    WIDEN(key, scratch, rows * d_k);
    if (rows < ROWS) memset(scratch + rows * d_k, 0, 4 * (ROWS - rows) * d_k);
    NAME(multiply_all)(scratch, d_k, queries, stride, squares, heat + row * stride);
    WIDEN(value, scratch, rows * d_v);
    for (int64_t r = 0; r < rows; r++) {
      float *row_values = scratch + r * d_v;
      const int64_t even = d_v - d_v % LANES;
      VEC parts = {0};
      for (int64_t d = 0; d < even; d += LANES) {
        VEC x, middle, factor;
        memcpy(&x, row_values + d, sizeof x);
        memcpy(&middle, centre + d, sizeof x);
        memcpy(&factor, weight + d, sizeof x);
        x -= middle;
        memcpy(row_values + d, &x, sizeof x);
        parts += factor * x * x;
      }
      for (int64_t d = even; d < d_v; d++) {
        row_values[d] -= centre[d];
        squares[r] += weight[d] * row_values[d] * row_values[d];
      }
      for (int i = 0; i < LANES; i++) squares[r] += parts[i];
    }
    if (rows < ROWS) memset(scratch + rows * d_v, 0, 4 * (ROWS - rows) * d_v);
    NAME(multiply_all)(scratch, d_v, weighted, stride, squares, distance + row * stride);
  }
}

/* Logits of one candidate segment, whose frames are rows 0 .. `last` of heat and distance and then `last` again. */
INLINE void NAME(segment)(const VEC *heat, const VEC *distance, int64_t stride, const float *between, const int64_t length,
                          int64_t last, const VEC *constant, VEC ceiling, VEC *weights, VEC *out) {
  for (int64_t v = 0; v < stride; v++) {
    VEC top = heat[v];
    for (int64_t t = 1; t < length; t++) {
      VEC h = heat[(t < last ? t : last) * stride + v];
      top = NAME(select)(h > top, h, top);
    }
    VEC total = {0}, linear = {0}, square = {0};
    for (int64_t t = 0; t < length; t++) {
      int64_t row = (t < last ? t : last) * stride + v;
      VEC weight = NAME(exponential)(heat[row] - top);
      weights[t] = weight;
      total += weight;
      linear += weight * distance[row];
    }
    for (int64_t t = 0; t < length; t++) {
      VEC sum = {0};
      for (int64_t u = t + 1; u < length; u++) sum += weights[u] * between[t * length + u];
      square += weights[t] * sum;
    }
    VEC share = 1.0f / total;
    VEC logit = constant[v] + (linear - square * share) * share;
    out[v] = NAME(select)(logit > ceiling, ceiling, logit);
  }
}

/* The logits [segments][targets] of candidate segments: frames start[k] .. min(start[k] + length - 1, last[k]), the last one
repeated. Segments ascend by start. queries [d_k][targets], weighted [d_v][targets] = -2 w (e - centre), constant [targets] = bias
+ sum w (e - centre)^2; targets is a multiple of LANES. band [frames][length - 1]: weighted squared distance to the next frames.
Returns 0, or 1 where memory is short. */
int NAME(pair_logits)(const TYPE *keys, const TYPE *values, const TYPE *band, int64_t d_k, int64_t d_v, int64_t length,
                      int64_t segments, const int64_t *start, const int64_t *last, int64_t targets, const float *queries,
                      const float *weighted, const float *constant, const float *weight, const float *centre, float ceiling,
                      float *out) {
  const int64_t stride = targets / LANES, tile = TILE > 2 * length ? TILE : 2 * length;
  const int64_t widest = d_k > d_v ? d_k : d_v, vectors = 2 * (tile + ROWS) * stride + length;
  char *memory = NULL;
  if (posix_memalign((void **)&memory, 64, 4 * (vectors * LANES + ROWS * widest + length * length + 64))) return 1;
  VEC *heat = (VEC *)memory, *distance = heat + (tile + ROWS) * stride, *weights = distance + (tile + ROWS) * stride;
  float *between = (float *)(weights + length), *scratch = between + length * length;
  const VEC highest = (VEC){0} + ceiling;
  memset(between, 0, 4 * length * length);
  for (int64_t from = 0; from < segments;) {
    int64_t first = start[from], end = first, to = from; /* frames first .. end - 1 serve segments from .. to - 1 */
    while (to < segments && start[to] <= end) {
      int64_t stop = start[to] + length - 1 < last[to] ? start[to] + length : last[to] + 1;
      if (stop - first > tile) break;
      if (stop > end) end = stop;
      to++;
    }
    NAME(products)(keys, values, d_k, d_v, first, end - first, (const VEC *)queries, (const VEC *)weighted, stride, weight, centre,
                   scratch, heat, distance);
    for (; from < to; from++) {
      int64_t offset = start[from] - first, final = last[from] - start[from];
      for (int64_t t = 0; t < length; t++)
        for (int64_t u = t + 1; u < length; u++) {
          int64_t a = t < final ? t : final, b = u < final ? u : final;
          between[t * length + u] = a == b ? 0.0f : (float)band[(start[from] + a) * (length - 1) + b - a - 1];
        }
      const VEC *h = heat + offset * stride, *d = distance + offset * stride;
      VEC *o = (VEC *)(out + from * targets);
      if (length == 8) NAME(segment)(h, d, stride, between, 8, final, (const VEC *)constant, highest, weights, o);
      else NAME(segment)(h, d, stride, between, length, final, (const VEC *)constant, highest, weights, o);
    }
  }
  free(memory);
  return 0;
}

/* The same for videos whose rows lie in files, as far as the page cache holds them: all segments of a video, `step` frames apart, the
last one ending with it. files, offset: int64 [partitions][ARRAYS], descriptors and where rows begin. owner, row, frames, pieces: int64
[videos], the partition of each, its first row there, its rows, its segments. out: [segments of all videos][targets]. left: [videos], zeros,
1 afterwards for those that are not scored. Returns 0, or 1 where memory is short. */
int NAME(cached_logits)(const int64_t *files, const int64_t *offset, const int64_t *owner, const int64_t *row, const int64_t *frames,
                        const int64_t *pieces, int64_t videos, int64_t d_k, int64_t d_v, int64_t length, int64_t step, int64_t targets,
                        const float *queries, const float *weighted, const float *constant, const float *weight, const float *centre,
                        float ceiling, float *out, char *left) {
  const int64_t widths[ARRAYS] = {d_k, d_v, length - 1}, most = CHUNK + LONGEST;
  TYPE *rows[ARRAYS];
  char *memory = NULL;
  if (posix_memalign((void **)&memory, 64, (d_k + d_v + length - 1) * sizeof(TYPE) * most + 16 * most)) return 1;
  int64_t *start = (int64_t *)memory, *last = start + most;
  rows[0] = (TYPE *)(last + most), rows[1] = rows[0] + d_k * most, rows[2] = rows[1] + d_v * most;
  int failed = 0;
  for (int64_t v = 0; v < videos && !failed;) {
    int64_t held = 0, count = 0;
    for (; v < videos && held < CHUNK; v++) {
      left[v] = frames[v] > LONGEST || pieces[v] > frames[v];
      for (int a = 0; a < ARRAYS && !left[v]; a++) {
        const int64_t size = widths[a] * sizeof(TYPE), of = owner[v] * ARRAYS + a;
        left[v] = !copied((int)files[of], (char *)(rows[a] + held * widths[a]), frames[v] * size, offset[of] + row[v] * size);
      }
      if (left[v]) break;
      const int64_t furthest = frames[v] > length ? frames[v] - length : 0;
      for (int64_t i = 0; i < pieces[v]; i++, count++) {
        start[count] = held + (i * step < furthest ? i * step : furthest);
        last[count] = held + frames[v] - 1;
      }
      held += frames[v];
    }
    failed = NAME(pair_logits)(rows[0], rows[1], rows[2], d_k, d_v, length, count, start, last, targets, queries, weighted, constant,
                               weight, centre, ceiling, out);
    out += count * targets;
    if (v < videos && left[v]) out += pieces[v++] * targets;
  }
  free(memory);
  return failed;
}

#undef VEC
#undef IVEC
#endif
