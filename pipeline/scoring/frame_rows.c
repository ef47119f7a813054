/* Scattered rows of files without Python in between; see pipeline/scoring/frame_rows.py. */
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

/* Ranges of files, one after another, into memory. 0, an errno, or -1 for a file that ends before its range does: `*at_fault`. */
int read_ranges(int64_t count, const int64_t *file, const int64_t *at, const int64_t *size, char *to, int64_t *at_fault) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t done = 0; done < size[i];) {
      ssize_t got = pread((int)file[i], to, size[i] - done, at[i] + done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        *at_fault = i;
        return got < 0 ? errno : -1;
      }
      done += got;
      to += got;
    }
  return 0;
}
