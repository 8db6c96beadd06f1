/* 2 x 2 maxima with stride 2 and "same" padding: the last window of an odd side is cut off.
 * Images are (n, height, width, channels), contiguous float32. */

enum { WINDOW = 2 };

static inline long shorter(long a, long b)
{
    return a < b ? a : b;
}

void max_pool(const float *x, float *out, long n, long height, long width, long channels)
{
    for (long b = 0; b < n; b++, x += height * width * channels)
        for (long row = 0; row < height; row += WINDOW)
            for (long column = 0; column < width; column += WINDOW, out += channels)
                for (long r = row; r < shorter(row + WINDOW, height); r++)
                    for (long q = column; q < shorter(column + WINDOW, width); q++) {
                        const float *pixel = x + (r * width + q) * channels;
                        const int first = r == row && q == column;
                        for (long c = 0; c < channels; c++) out[c] = first || pixel[c] > out[c] ? pixel[c] : out[c];
                    }
}

/* The gradient in x, from that in out; as torch's amax has it, equal maxima share it. `share` holds a pixel. */
void max_pool_backward(const float *g, const float *x, const float *out, float *g_x, float *restrict share, long n,
                       long height, long width, long channels)
{
    for (long b = 0; b < n; b++, x += height * width * channels, g_x += height * width * channels)
        for (long row = 0; row < height; row += WINDOW)
            for (long column = 0; column < width; column += WINDOW, out += channels, g += channels) {
                const long end = shorter(row + WINDOW, height), last = shorter(column + WINDOW, width);
                for (long c = 0; c < channels; c++) share[c] = 0;
                for (long r = row; r < end; r++)
                    for (long q = column; q < last; q++)
                        for (long c = 0; c < channels; c++) share[c] += x[(r * width + q) * channels + c] == out[c];
                for (long c = 0; c < channels; c++) share[c] = g[c] / share[c];
                for (long r = row; r < end; r++)
                    for (long q = column; q < last; q++)
                        for (long c = 0; c < channels; c++) {
                            const long at = (r * width + q) * channels + c;
                            g_x[at] = x[at] == out[c] ? share[c] : 0;
                        }
            }
}
