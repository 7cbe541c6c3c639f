/* What memory allows a step at best: four arrays are read and three written, next to no arithmetic.
   Compiled and called by bandwidth.py. */
#include <stdint.h>

void read_modify_write(float *restrict p, const float *restrict g, float *restrict m,
                       float *restrict v, int64_t count)
{
    for (int64_t i = 0; i < count; ++i) {
        m[i] = m[i] + g[i];
        v[i] = v[i] + g[i];
        p[i] = p[i] + g[i];
    }
}
