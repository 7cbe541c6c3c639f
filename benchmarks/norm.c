/* A norm by tiles and lanes, in one order of addition: what exact sums are compared with. Squares are
   added in 16 lanes for each 1,024 elements. Compiled and called by norm.py. */
#include <stdint.h>

enum { TILE = 1024, LANES = 16 };

double sum_of_squares(const float *x, int64_t count)
{
    double total = 0;
    for (int64_t tile = 0; tile + TILE <= count; tile += TILE) {
        double lanes[LANES] = {0};
        for (int row = 0; row < TILE; row += LANES) {
            for (int lane = 0; lane < LANES; ++lane) {
                double value = x[tile + row + lane];
                lanes[lane] = lanes[lane] + value * value;
            }
        }
        for (int half = LANES / 2; half > 0; half /= 2) {
            for (int lane = 0; lane < half; ++lane) {
                lanes[lane] = lanes[lane] + lanes[lane + half];
            }
        }
        total += lanes[0];
    }
    return total;
}
