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
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

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

#define CHUNK 512         /* rows that are copied from files before they are scored: they stay in the second-level cache */
#define ARRAYS 3          /* keys, values, band */
#define ASKED (128 << 10) /* bytes that a disk is asked for at a time: systems leave off where their read-ahead ends */
#ifndef AHEAD             /* tests set it */
#define AHEAD (16 << 20)  /* bytes that are asked for before the first of them are waited for */
#endif

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

/* Videos whose rows lie in files, an array in each. files, offset: [partitions][ARRAYS], descriptors and where rows begin in bytes.
owner, row, frames: [videos], the partition of each, its first row there, its rows. bytes: of a row of each array. */
typedef struct {
  const int64_t *files, *offset, *owner, *row, *frames;
  int64_t bytes[ARRAYS];
} filed;

/* Copies the rows of video v to `to`: 0, an errno, or -1 where a file ends too early, in which *array. Without `wait`, what the page cache
does not hold fails at once. */
static int copy_video(const filed *in, int64_t v, char *const *to, int wait, int64_t *array) {
  for (int64_t a = *array = 0; a < ARRAYS; *array = ++a) {
    const int64_t of = in->owner[v] * ARRAYS + a, at = in->offset[of] + in->row[v] * in->bytes[a], size = in->frames[v] * in->bytes[a];
    for (int64_t done = 0; done < size;) {
      const struct iovec place = {to[a] + done, (size_t)(size - done)};
      ssize_t got = -1;
      if (wait) got = pread((int)in->files[of], place.iov_base, place.iov_len, at + done);
#ifdef RWF_NOWAIT
      else got = preadv2((int)in->files[of], &place, 1, at + done, RWF_NOWAIT);
#else
      else errno = EAGAIN;
#endif
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return got < 0 ? errno : -1;
      done += got;
    }
  }
  return 0;
}

/* Has the rows of video v read into the page cache, and waits for nothing. */
static void ask_for_video(const filed *in, int64_t v) {
#ifdef POSIX_FADV_WILLNEED
  for (int64_t a = 0; a < ARRAYS; a++) {
    const int64_t of = in->owner[v] * ARRAYS + a, at = in->offset[of] + in->row[v] * in->bytes[a], end = at + in->frames[v] * in->bytes[a];
    for (int64_t from = at; from < end; from += ASKED)
      posix_fadvise((int)in->files[of], from, end - from < ASKED ? end - from : ASKED, POSIX_FADV_WILLNEED);
  }
#else
  (void)in, (void)v;
#endif
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

/* The same for videos whose rows lie in files (`filed`): all segments of a video, `step` frames apart, the last one ending with it.
Videos that the page cache holds are scored at once. The others are asked for, and each is waited for when so many more are asked for that
the disk has enough to do, or when nothing else is left. place, pieces: int64 [videos], the first segment of each in `out` and its segments,
at most as many as rows. out: [segments of all videos][targets]. Returns 0, ENOMEM, or what `copy_video` says; then *at_fault is not -1,
but ARRAYS times the video plus the array. */
int NAME(file_logits)(const int64_t *files, const int64_t *offset, const int64_t *owner, const int64_t *row, const int64_t *frames,
                      const int64_t *place, const int64_t *pieces, int64_t videos, int64_t d_k, int64_t d_v, int64_t length, int64_t step,
                      int64_t targets, const float *queries, const float *weighted, const float *constant, const float *weight,
                      const float *centre, float agreement, float unit, float slack, float ceiling, float *out, int64_t *at_fault) {
  const filed in = {files, offset, owner, row, frames, {d_k * sizeof(TYPE), d_v * sizeof(TYPE), (length - 1) * sizeof(TYPE)}};
  const int64_t row_bytes = in.bytes[0] + in.bytes[1] + in.bytes[2];
  int64_t most = 0; /* rows that are held at a time */
  for (int64_t v = 0; v < videos; v++) most = frames[v] > most ? frames[v] : most;
  most += CHUNK - 1;
  char *memory = NULL;
  if (posix_memalign((void **)&memory, 64, (16 + row_bytes) * most + 8 * videos)) return ENOMEM;
  int64_t *start = (int64_t *)memory, *last = start + most, *asked = last + most;
  char *const keys = (char *)(asked + videos), *const values = keys + in.bytes[0] * most, *const band = values + in.bytes[1] * most;
  int64_t next = 0, oldest = 0, newest = 0, ahead = 0; /* the first video not looked at; asked[oldest .. newest - 1], and their bytes */
  int failed = 0;
  for (int64_t held = 1; held && !failed;) {
    int64_t count = 0, first = 0, end = 0, array; /* videos first .. end - 1 are held, with so many segments */
    for (held = 0; held < CHUNK;) {
      const int wait = oldest < newest && (next == videos || ahead > AHEAD);
      const int64_t v = wait ? asked[oldest] : next;
      if (v == videos || (held && v != end)) break;
      char *const to[ARRAYS] = {keys + held * in.bytes[0], values + held * in.bytes[1], band + held * in.bytes[2]};
      failed = copy_video(&in, v, to, wait, &array);
      if (failed && wait) {
        *at_fault = v * ARRAYS + array;
        break;
      }
      if (failed) {
        ask_for_video(&in, v);
        asked[newest++] = next++, ahead += frames[v] * row_bytes, failed = 0;
        continue;
      }
      if (wait) oldest++, ahead -= frames[v] * row_bytes;
      else next++;
      const int64_t furthest = frames[v] > length ? frames[v] - length : 0;
      for (int64_t i = 0; i < pieces[v]; i++, count++) {
        start[count] = held + (i * step < furthest ? i * step : furthest);
        last[count] = held + frames[v] - 1;
      }
      if (!held) first = v;
      held += frames[v], end = v + 1;
    }
    if (held && !failed && NAME(pair_logits)((TYPE *)keys, (TYPE *)values, (TYPE *)band, d_k, d_v, length, count, start, last, targets, queries,
                                             weighted, constant, weight, centre, agreement, unit, slack, ceiling, out + place[first] * targets))
      failed = ENOMEM;
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
