/* The nearest product-quantised segment of each video, on one CPU core; see pipeline/list_scan.py.

Written once for every vector width: the file includes itself with another LANES. A vector holds one number of each of LANES target
segments, so that a code's bytes pick rows of a table that are added up; what is left is the smallest number of one vector.
*/
#ifndef LANES

#include <stdint.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, LANES)
#define INLINE static inline __attribute__((always_inline))

#ifdef __SSE4_1__
#include <immintrin.h>
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

typedef uint16_t NAME(vec) __attribute__((vector_size(2 * LANES), aligned(2 * LANES)));
#define VEC NAME(vec)

INLINE uint16_t NAME(smallest)(VEC x) {
#ifdef __SSE4_1__
  const __m128i *half = (const __m128i *)&x;
#if LANES == 8
  return (uint16_t)_mm_extract_epi16(_mm_minpos_epu16(half[0]), 0);
#else
  return (uint16_t)_mm_extract_epi16(_mm_minpos_epu16(_mm_min_epu16(half[0], half[1])), 0);
#endif
#else
  uint16_t least = x[0];
  for (int i = 1; i < LANES; i++) least = x[i] < least ? x[i] : least;
  return least;
#endif
}

typedef struct {
  VEC sum;
  const uint8_t *code;
  int32_t video;
} NAME(waiting);
#define WAITING NAME(waiting)

/* Whether a segment whose sum will be `sum` or more is of no use: it is not among those asked for, or its video has a nearer one. */
INLINE int NAME(useless)(const WAITING *one, uint32_t limit, const uint16_t *best) {
  uint16_t least = NAME(smallest)(one->sum);
  return least > limit || least >= best[one->video];
}

INLINE void NAME(add_up)(WAITING *some, int count, int64_t from, int64_t to, const VEC *table) {
  for (int64_t m = from; m < to; m++)
    for (int i = 0; i < count; i++) some[i].sum += table[256 * m + some[i].code[m]];
}

INLINE void NAME(finish)(WAITING *some, int count, int64_t half, int64_t width, const VEC *table, uint32_t limit, uint16_t *best) {
  NAME(add_up)(some, count, half, width, table);
  for (int i = 0; i < count; i++)
    if (!NAME(useless)(some + i, limit, best)) best[some[i].video] = NAME(smallest)(some[i].sum);
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
      fresh[count++] = (WAITING){{0}, codes[list] + i * width, owner};
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
#endif
