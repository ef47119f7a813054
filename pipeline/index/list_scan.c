/* The nearest product-quantised segment of each video, on one CPU core; see pipeline/index/list_scan.py.

Written once for every vector width: the file includes itself with another LANES. A vector holds one number of each of LANES target
segments, so that a code's bytes pick rows of a table that are added up; what is left is the smallest number of one vector. Where
registers are narrower than that, it is PARTS vectors: compilers take a wider one apart through memory.
*/
#ifndef LANES

#include <stdint.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, LANES)
#define INLINE static inline __attribute__((always_inline))

#if defined(__SSE4_1__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Ask for memory that is needed soon: a list is too short for the processor to see that it is read from front to back. */
INLINE void fetch(const void *memory, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)memory + i);
}

#define TOGETHER 4 /* codes whose sums are made at a time */

#define LANES 8
#include "list_scan.c"
#undef LANES
#define LANES 16
#include "list_scan.c"

#else

#if LANES == 16 && !defined(__AVX2__)
#define PARTS 2
#else
#define PARTS 1
#endif
typedef uint16_t NAME(vec) __attribute__((vector_size(2 * LANES / PARTS), aligned(2 * LANES / PARTS)));
#define VEC NAME(vec)

typedef struct {
  VEC sum[PARTS];
  const uint8_t *code;
  int32_t video;
} NAME(waiting);
#define WAITING NAME(waiting)

INLINE uint16_t NAME(smallest)(const WAITING *one) {
#if defined(__SSE4_1__)
  __m128i least = *(const __m128i *)one->sum;
  if (LANES == 16) least = _mm_min_epu16(least, ((const __m128i *)one->sum)[LANES / 16]);
  return (uint16_t)_mm_extract_epi16(_mm_minpos_epu16(least), 0);
#elif defined(__aarch64__)
  uint16x8_t least = (uint16x8_t)one->sum[0];
  if (PARTS == 2) least = vminq_u16(least, (uint16x8_t)one->sum[PARTS - 1]);
  return vminvq_u16(least);
#else
  uint16_t least = UINT16_MAX;
  for (int p = 0; p < PARTS; p++)
    for (int i = 0; i < LANES / PARTS; i++) least = one->sum[p][i] < least ? one->sum[p][i] : least;
  return least;
#endif
}

/* Whether a segment whose sum will be `sum` or more is of no use: it is not among those asked for, or its video has a nearer one. */
INLINE int NAME(useless)(const WAITING *one, uint32_t limit, const uint16_t *best) {
  uint16_t least = NAME(smallest)(one);
  return least > limit || least >= best[one->video];
}

INLINE void NAME(add_up)(WAITING *some, int count, int64_t from, int64_t to, const VEC *table) {
  for (int64_t m = from; m < to; m++)
    for (int i = 0; i < count; i++)
      for (int p = 0; p < PARTS; p++) some[i].sum[p] += table[(256 * m + some[i].code[m]) * PARTS + p];
}

INLINE void NAME(finish)(WAITING *some, int count, int64_t half, int64_t width, const VEC *table, uint32_t limit, uint16_t *best) {
  NAME(add_up)(some, count, half, width, table);
  for (int i = 0; i < count; i++)
    if (!NAME(useless)(some + i, limit, best)) best[some[i].video] = NAME(smallest)(some + i);
}

/* Sums of the first half of codes; those that may still be of use wait for the other half until they are TOGETHER. */
INLINE int NAME(begin)(WAITING *some, int count, WAITING *later, int waiting, int64_t half, int64_t width, const VEC *table,
                       uint32_t limit, uint16_t *best) {
  NAME(add_up)(some, count, 0, half, table);
  for (int i = 0; i < count; i++) {
    if (NAME(useless)(some + i, limit, best)) continue;
    later[waiting++] = some[i];
    if (waiting == TOGETHER) NAME(finish)(later, TOGETHER, half, width, table, limit, best), waiting = 0;
  }
  return waiting;
}

/* Lower best[v] to the smallest sum of a segment of video v in some lists, over all lanes, as far as it is not above `limit`.

codes, ids, size: of each list, its codes of `width` bytes, its segments' numbers and how many they are. table [width][256][LANES].
A video whose best is 0 already is passed over. -1 for a list that names a segment which is not there. */
int NAME(scan_lists_)(int64_t lists, const uint8_t *const *codes, const int64_t *const *ids, const int64_t *size, int64_t width,
                      const uint16_t *table, int64_t segments, const int32_t *video_of_segment, int64_t limit, uint16_t *best) {
  WAITING fresh[TOGETHER], later[TOGETHER];
  const VEC *rows = (const VEC *)table;
  const int64_t half = limit < UINT16_MAX ? width / 2 : width;
  const uint32_t most = (uint32_t)limit;
  int count = 0, waiting = 0;
  for (int64_t list = 0; list < lists; list++) {
    if (list + 1 < lists) {
      fetch(codes[list + 1], size[list + 1] * width);
      fetch(ids[list + 1], size[list + 1] * (int64_t)sizeof(int64_t));
    }
    for (int64_t i = 0; i < size[list]; i++) {
      uint64_t id = (uint64_t)ids[list][i];
      if (id >= (uint64_t)segments) return -1;
      int32_t owner = video_of_segment[id];
      if (!best[owner]) continue;
      fresh[count++] = (WAITING){{{0}}, codes[list] + i * width, owner};
      if (count == TOGETHER) {
        waiting = NAME(begin)(fresh, TOGETHER, later, waiting, half, width, rows, most, best);
        count = 0;
      }
    }
  }
  for (int i = 0; i < count; i++) waiting = NAME(begin)(fresh + i, 1, later, waiting, half, width, rows, most, best);
  for (int i = 0; i < waiting; i++) NAME(finish)(later + i, 1, half, width, rows, most, best);
  return 0;
}

#undef VEC
#undef WAITING
#undef PARTS
#endif
