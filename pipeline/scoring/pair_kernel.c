/* Logits of all pairs of target and candidate segments, on one CPU core; see pipeline/scoring/pair_kernel.py and pipeline/scoring/scores.py.

Written once for every storage type and vector width: the file includes itself with other macros. A vector holds LANES target
segments, so that whatever belongs to a candidate frame is one broadcast number, and no logit depends on those beside it. LANES
is never more than a register of the processor holds: compilers take wider vectors apart through memory, forty times as slow.
Sums of products are fused by name and nowhere else (-ffp-contract=off): a compiler's tuning fuses some at one width and others at
another, and a logit would change in its last bit with the number of target segments.
*/
#ifndef TYPE

#define _GNU_SOURCE /* for preadv2 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, JOIN(SUFFIX, LANES))
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__FMA__)
#define FEWER 8 /* lanes for as many target segments at most */
#define LANES_MOST 16
#elif defined(__AVX2__)
#define LANES_MOST 8
#else
#define LANES_MOST 4 /* SSE, NEON, and AVX without integers */
#endif

/* PANEL vectors of target segments are multiplied at a time, and SUMS are held in registers. */
#ifdef FEWER /* of 32 registers */
#define PANEL 4
#define SUMS 24
#elif defined(__aarch64__) /* of 32, but compilers load the numbers of all rows first, and would spill of 24 */
#define PANEL 4
#define SUMS 16
#else /* of 16 */
#define PANEL 2
#define SUMS 12
#endif
#define MANY 8   /* frames that are multiplied at a time, at most */
#define ROWS 24  /* frames that are widened at a time */
#define TILE 120 /* frames whose products are held at a time, a multiple of ROWS, and more where a segment is longer */

#define CHUNK 512    /* rows that are copied from files before they are scored: they stay in the second-level cache */
#define LONGEST 4096 /* rows of a video that is */
#define ARRAYS 3     /* keys, values, band */

/* Lanes of the functions for so many target segments. */
int64_t lanes_for(int64_t targets) {
#ifdef FEWER
  if (targets <= FEWER) return FEWER;
#endif
  (void)targets;
  return LANES_MOST;
}

/* float16 -> float32, exactly, whatever the compiler knows of float16. */
INLINE void widen_half(const uint16_t *from, float *to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__) /* by name: compilers leave the plain loop scalar */
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#elif defined(__aarch64__)
  for (; i + 4 <= count; i += 4) vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i))));
#endif
  for (; i < count; i++) {
    const uint32_t size = (from[i] & 0x7fffu) << 13, sign = (from[i] & 0x8000u) << 16;
    const uint32_t least = 113u << 23; /* 2^-14: below, float16 has no leading one */
    const uint32_t bits = size + (size >= 0x7c00u << 13 ? 224u << 23 : 112u << 23), small = size + least;
    float number, one;
    memcpy(&number, &small, 4);
    memcpy(&one, &least, 4);
    number -= one;
    uint32_t subnormal;
    memcpy(&subnormal, &number, 4);
    const uint32_t whole = (size < 0x400u << 13 ? subnormal : bits) | sign;
    memcpy(to + i, &whole, 4);
  }
}

INLINE void widen_single(const float *from, float *to, int64_t count) { memcpy(to, from, 4 * count); }

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

#define TYPE uint16_t
#define WIDEN widen_half
#define SUFFIX _half_
#define LANES LANES_MOST
#include "pair_kernel.c"
#ifdef FEWER
#undef LANES
#define LANES FEWER
#include "pair_kernel.c"
#endif
#undef TYPE
#undef WIDEN
#undef SUFFIX
#undef LANES
#define TYPE float
#define WIDEN widen_single
#define SUFFIX _single_
#define LANES LANES_MOST
#include "pair_kernel.c"
#ifdef FEWER
#undef LANES
#define LANES FEWER
#include "pair_kernel.c"
#endif

#else

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * LANES)));
#define VEC NAME(vec)
#define IVEC NAME(ivec)

INLINE VEC NAME(select)(IVEC mask, VEC yes, VEC no) { return (VEC)(((IVEC)yes & mask) | ((IVEC)no & ~mask)); }

#define ALL(x) ((x) - (VEC){0}) /* not 0 + x: that is another number for -0, and stays an addition */

/* The larger and the smaller of each pair, the second where one is NaN. */
#if LANES == 16
#define LARGER(a, b) ((VEC)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define SMALLER(a, b) ((VEC)_mm512_min_ps((__m512)(a), (__m512)(b)))
#elif LANES == 8
#define LARGER(a, b) ((VEC)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define SMALLER(a, b) ((VEC)_mm256_min_ps((__m256)(a), (__m256)(b)))
#elif defined(__SSE__)
#define LARGER(a, b) ((VEC)_mm_max_ps((__m128)(a), (__m128)(b)))
#define SMALLER(a, b) ((VEC)_mm_min_ps((__m128)(a), (__m128)(b)))
#else
#define LARGER(a, b) NAME(select)((a) > (b), a, b)
#define SMALLER(a, b) NAME(select)((a) < (b), a, b)
#endif

/* a * b + c, rounded once where the processor can. */
#if LANES == 16
#define MULTIPLY_ADD(a, b, c) ((VEC)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#elif LANES == 8 && defined(__FMA__)
#define MULTIPLY_ADD(a, b, c) ((VEC)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#elif LANES == 4 && defined(__FMA__)
#define MULTIPLY_ADD(a, b, c) ((VEC)_mm_fmadd_ps((__m128)(a), (__m128)(b), (__m128)(c)))
#elif LANES == 4 && defined(__aarch64__)
#define MULTIPLY_ADD(a, b, c) ((VEC)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

#if LANES == 16
#define ROOT(a) ((VEC)_mm512_sqrt_ps((__m512)(a)))
#elif LANES == 8
#define ROOT(a) ((VEC)_mm256_sqrt_ps((__m256)(a)))
#elif defined(__SSE__)
#define ROOT(a) ((VEC)_mm_sqrt_ps((__m128)(a)))
#elif defined(__aarch64__)
#define ROOT(a) ((VEC)vsqrtq_f32((float32x4_t)(a)))
#else
INLINE VEC NAME(root)(VEC x) {
  for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
#define ROOT(a) NAME(root)(a)
#endif

/* 2^x for x <= 0, to 2 units in the last place. */
INLINE VEC NAME(power)(VEC x) {
  x = LARGER(ALL(-126.0f), x);              /* so that NaN stays NaN */
  VEC shifted = x + (12582912.0f + 127.0f); /* rounds to an integer in the last bits, and adds the exponent of 1 */
  VEC rest = x - (shifted - (12582912.0f + 127.0f));
  VEC sum = MULTIPLY_ADD(rest, ALL(1.32647271e-3f), ALL(9.67151264e-3f));
  sum = MULTIPLY_ADD(sum, rest, ALL(5.55073374e-2f));
  sum = MULTIPLY_ADD(sum, rest, ALL(2.40222421e-1f));
  sum = MULTIPLY_ADD(sum, rest, ALL(6.93146978e-1f));
  sum = MULTIPLY_ADD(sum, rest, ALL(1.0f));
  return sum * (VEC)((IVEC)shifted << 23);
}

/* out[r][v] = sum_d rows[r][d] * table[d][v] + added[r], for `count` rows and `vectors` vectors of target segments: all sums stay
in registers. Meanwhile as many bytes are asked for as stored rows of this width have, from `soon` on. */
INLINE void NAME(multiply)(const float *rows, int64_t width, const VEC *table, int64_t stride, const float *added, uintptr_t soon,
                           VEC *out, const int count, const int vectors) {
  VEC sums[MANY][PANEL];
#pragma GCC unroll 8
  for (int r = 0; r < count; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sums[r][v] = ALL(added[r]);
  for (int64_t d = 0; d < width; d++, soon += count * sizeof(TYPE)) {
    VEC column[PANEL];
    __builtin_prefetch((const void *)soon);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) column[v] = table[d * stride + v];
#pragma GCC unroll 8
    for (int r = 0; r < count; r++)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sums[r][v] = MULTIPLY_ADD(ALL(rows[r * width + d]), column[v], sums[r][v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < count; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) out[r * stride + v] = sums[r][v];
}

/* The same for more rows, as many at a time as there are registers for; up to MANY - 1 rows more are written. */
INLINE void NAME(multiply_rows)(const float *rows, int64_t number, int64_t width, const VEC *table, int64_t stride,
                                const float *added, uintptr_t soon, VEC *out, const int vectors) {
  const int count = SUMS / vectors < MANY ? SUMS / vectors : MANY;
  for (int64_t r = 0; r < number; r += count)
    NAME(multiply)(rows + r * width, width, table, stride, added + r, soon + r * width * sizeof(TYPE), out + r * stride, count, vectors);
}

/* The same for any number of vectors. Not inline: in a function of their own the addresses of rows find registers, too. */
static __attribute__((noinline)) void NAME(multiply_all)(const float *rows, int64_t number, int64_t width, const VEC *table,
                                                         int64_t stride, const float *added, uintptr_t soon, VEC *out) {
  int64_t v = 0;
  for (; v + PANEL <= stride; v += PANEL)
    NAME(multiply_rows)(rows, number, width, table + v, stride, added, soon, out + v, PANEL);
#if PANEL > 2
  for (; v + 2 <= stride; v += 2) NAME(multiply_rows)(rows, number, width, table + v, stride, added, soon, out + v, 2);
#endif
  for (; v < stride; v++) NAME(multiply_rows)(rows, number, width, table + v, stride, added, soon, out + v, 1);
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
    NAME(multiply_all)(scratch, rows, d_k, queries, stride, squares, (uintptr_t)(key + ROWS * d_k), heat + row * stride);
    WIDEN(value, scratch, rows * d_v);
    for (int64_t r = 0; r < rows; r++) {
      float *row_values = scratch + r * d_v;
      const int64_t even = d_v - d_v % LANES_MOST;
      VEC parts[LANES_MOST / LANES] = {0}; /* as many numbers whatever LANES is: the order of a sum decides on its last bits */
      for (int64_t d = 0; d < even; d += LANES_MOST)
        for (int part = 0; part < LANES_MOST / LANES; part++) {
          VEC x, middle, factor;
          float *place = row_values + d + part * LANES;
          memcpy(&x, place, sizeof x);
          memcpy(&middle, centre + (place - row_values), sizeof x);
          memcpy(&factor, weight + (place - row_values), sizeof x);
          x -= middle;
          memcpy(place, &x, sizeof x);
          parts[part] = MULTIPLY_ADD(factor * x, x, parts[part]);
        }
      for (int64_t d = even; d < d_v; d++) {
        row_values[d] -= centre[d];
        squares[r] += weight[d] * row_values[d] * row_values[d];
      }
      for (int i = 0; i < LANES_MOST; i++) squares[r] += parts[i / LANES][i % LANES];
    }
    if (rows < ROWS) memset(scratch + rows * d_v, 0, 4 * (ROWS - rows) * d_v);
    NAME(multiply_all)(scratch, rows, d_v, weighted, stride, squares, (uintptr_t)(value + ROWS * d_v), distance + row * stride);
  }
}

/* Logits of one candidate segment, whose frames are rows 0 .. count - 1 of heat and distance. band [count][next]: squared distance of
each of its frames to the next ones. Heat counts as far as the warmest frame's less slack; agreement times the distance is added.
unit: s where encodings are compared as unit vectors, with the bias as ceiling; otherwise 0. */
INLINE void NAME(segment)(const VEC *heat, const VEC *distance, int64_t stride, const float *band, const int64_t next,
                          const int64_t count, const VEC *constant, float agreement, float unit, float slack, VEC ceiling,
                          VEC *weights, VEC *out) {
  for (int64_t v = 0; v < stride; v++) {
    VEC most = heat[v];
    for (int64_t t = 1; t < count; t++) most = LARGER(heat[t * stride + v], most);
    most -= slack;
    VEC top = ALL(-3e38f);
    for (int64_t t = 0; t < count; t++) {
      weights[t] = MULTIPLY_ADD(ALL(agreement), distance[t * stride + v], SMALLER(most, heat[t * stride + v]));
      top = LARGER(weights[t], top);
    }
    VEC total = {0}, linear = {0}, square = {0};
    for (int64_t t = 0; t < count; t++) {
      VEC weight = NAME(power)(weights[t] - top);
      weights[t] = weight;
      total += weight;
      linear = MULTIPLY_ADD(weight, distance[t * stride + v], linear);
    }
    for (int64_t t = 0; t < count - 1; t++) {
      VEC sum = {0};
      for (int64_t u = t + 1; u < count; u++) sum = MULTIPLY_ADD(weights[u], ALL(band[t * next + u - t - 1]), sum);
      square = MULTIPLY_ADD(weights[t], sum, square);
    }
    VEC share = 1.0f / total;
    VEC logit = MULTIPLY_ADD(MULTIPLY_ADD(-square, share, linear), share, constant[v]);
    if (unit > 0) {
      VEC length = MULTIPLY_ADD(square * share * share, ALL(1 / unit), ALL(1.0f)); /* its square, of a candidate's encoding */
      length = LARGER(ALL(1e-6f), length);
      logit = ceiling + (MULTIPLY_ADD(ALL(unit), length, ALL(unit)) + (logit - ceiling)) / ROOT(length) - 2 * unit;
    }
    out[v] = NAME(select)(logit > ceiling, ceiling, logit);
  }
}

/* The logits [segments][targets] of candidate segments: frames start[k] .. min(start[k] + length - 1, last[k]). Segments
ascend by start. queries [d_k][targets] = q / log 2, weighted [d_v][targets] = -2 w (e - centre), constant [targets] = bias + sum w (e -
centre)^2; targets is a multiple of LANES. agreement and slack are divided by log 2, too. band [frames][length - 1]: weighted squared distance to
the next frames. Returns 0, or 1 where memory is short. */
int NAME(pair_logits)(const TYPE *keys, const TYPE *values, const TYPE *band, int64_t d_k, int64_t d_v, int64_t length,
                      int64_t segments, const int64_t *start, const int64_t *last, int64_t targets, const float *queries,
                      const float *weighted, const float *constant, const float *weight, const float *centre, float agreement,
                      float unit, float slack, float ceiling, float *out) {
  const int64_t stride = targets / LANES, tile = TILE > 2 * length ? TILE : 2 * length, next = length - 1;
  const int64_t widest = d_k > d_v ? d_k : d_v, vectors = 2 * (tile + ROWS) * stride + length;
  char *memory = NULL;
  if (posix_memalign((void **)&memory, 64, 4 * (vectors * LANES + ROWS * widest + tile * next))) return 1;
  VEC *heat = (VEC *)memory, *distance = heat + (tile + ROWS) * stride, *weights = distance + (tile + ROWS) * stride;
  float *scratch = (float *)(weights + length), *wide = scratch + ROWS * widest;
  const VEC highest = ALL(ceiling);
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
    WIDEN(band + first * next, wide, (end - first) * next);
    for (; from < to; from++) {
      const int64_t offset = start[from] - first, rest = last[from] - start[from] + 1, count = rest < length ? rest : length;
      const VEC *h = heat + offset * stride, *d = distance + offset * stride, *c = (const VEC *)constant;
      const float *own = wide + offset * next;
      VEC *o = (VEC *)(out + from * targets);
      if (length == 8 && count == 8) NAME(segment)(h, d, stride, own, 7, 8, c, agreement, unit, slack, highest, weights, o);
      else NAME(segment)(h, d, stride, own, next, count, c, agreement, unit, slack, highest, weights, o);
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
                        float agreement, float unit, float slack, float ceiling, float *out, char *left) {
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
                               weight, centre, agreement, unit, slack, ceiling, out);
    out += count * targets;
    if (v < videos && left[v]) out += pieces[v++] * targets;
  }
  free(memory);
  return failed;
}

#undef VEC
#undef IVEC
#undef ALL
#undef LARGER
#undef SMALLER
#undef MULTIPLY_ADD
#undef ROOT
#endif
