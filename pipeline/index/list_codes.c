/* Codes of a product quantizer, on one CPU core; see pipeline/index/list_codes.py.

A part of a vector has few numbers, here three, and is compared with 256 centres: too few numbers for FAISS to fill a vector
register with them. So the lanes of a register are the centres.
*/
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define CENTRES 256
#define TOGETHER 32 /* vectors whose parts are coded one part after another, so that a part's centres are read once */
#define INLINE static inline __attribute__((always_inline))

typedef float numbers __attribute__((vector_size(4 * LANES)));
typedef int32_t places __attribute__((vector_size(4 * LANES)));

/* The nearest of the CENTRES to x [width], the first of equal ones. centres [width][CENTRES]. */
INLINE uint8_t nearest(const float *x, const float *centres, int64_t width, places first) {
  numbers least;
  places found = first, place = first;
  for (int k = 0; k < CENTRES; k += LANES, place += LANES) {
    numbers sum = {0};
    for (int64_t w = 0; w < width; w++) {
      numbers gap;
      memcpy(&gap, centres + w * CENTRES + k, sizeof gap);
      gap = x[w] - gap;
      sum += gap * gap;
    }
    if (k == 0) {
      least = sum;
      continue;
    }
    places nearer = sum < least;
    least = (numbers)(((places)sum & nearer) | ((places)least & ~nearer));
    found = (place & nearer) | (found & ~nearer);
  }
  int best = 0;
  for (int i = 1; i < LANES; i++)
    if (least[i] < least[best] || (least[i] == least[best] && found[i] < found[best])) best = i;
  return (uint8_t)found[best];
}

/* codes [count][parts] of vectors [count][parts][width]; centres [parts][width][CENTRES]. */
void encode(int64_t count, int64_t parts, int64_t width, const float *vectors, const float *centres, uint8_t *codes) {
  places first;
  for (int i = 0; i < LANES; i++) first[i] = i;
  for (int64_t start = 0; start < count; start += TOGETHER) {
    int64_t stop = start + TOGETHER < count ? start + TOGETHER : count;
    for (int64_t m = 0; m < parts; m++) {
      const float *of_part = centres + m * width * CENTRES;
      for (int64_t i = start; i < stop; i++) {
        const float *x = vectors + (i * parts + m) * width;
        codes[i * parts + m] = width == 3 ? nearest(x, of_part, 3, first) : nearest(x, of_part, width, first);
      }
    }
  }
}
