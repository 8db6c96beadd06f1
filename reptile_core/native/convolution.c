/* 3 x 3 "same" convolutions and their two gradients as sums of matrix products, without writing out patches.
 *
 * Rows of a tile are the same position in some images, or some input channels of a weight. Images of a batch share a
 * position's taps, so that those that lie in the padding are skipped, not multiplied by zero. */

#include <string.h>

#include "shape.h"
#include "tiles.h"

/* What a position of the result is made of: source positions and the taps that they meet. */
typedef struct {
    long count, source[TAPS], tap[TAPS];
} Meeting;

/* out[row * out_step] = sum over the meeting of x[row * x_step + source] @ w[tap], for a tile of `vectors` channels. */
INLINE void gather_tile(const int rows, const int vectors, const float *x, long x_step, const float *w, float *out,
                        long out_step, long c, long f, const Meeting *meeting)
{
    Vector sums[TALLEST][WIDEST], loaded[WIDEST];
    load(rows, vectors, sums, 0, 0);
    for (long t = 0; t < meeting->count; t++) {
        const float *from = x + meeting->source[t] * c, *weights = w + meeting->tap[t] * c * f;
        for (long k = 0; k < c; k++) {
            fetch(vectors, loaded, weights + k * f);
            add_products(rows, vectors, sums, from + k, x_step, loaded);
        }
    }
    store(rows, vectors, sums, out, out_step);
}

/* out[row * f] += sum over pairs of x[x_at + row] * g[g_at], for a tile of `vectors` channels of g. */
INLINE void correlate_tile(const int rows, const int vectors, const float *x, const float *g, float *out, long f,
                           const long *x_at, const long *g_at, long count)
{
    Vector sums[TALLEST][WIDEST], loaded[WIDEST];
    load(rows, vectors, sums, out, f);
    for (long t = 0; t < count; t++) {
        fetch(vectors, loaded, g + g_at[t]);
        add_products(rows, vectors, sums, x + x_at[t], 1, loaded);
    }
    store(rows, vectors, sums, out, f);
}

/* out (lanes, n, to, f) from x (lanes, n, from, c): each position of `to` gathers its meeting. */
static void gather(const float *x, const float *w, float *out, const Shape *s, long from, long c, long to, long f,
                   const Meeting *meetings)
{
    const long n = s->n, tiles = (n + TALLEST - 1) / TALLEST;
    for (long lane = 0; lane < s->lanes; lane++, x += n * from * c, w += TAPS * c * f, out += n * to * f)
        for (long at = 0; at < to; at++)
            for (long tile = 0; tile < tiles; tile++) {
                const long b = n * tile / tiles, rows = n * (tile + 1) / tiles - b;
                const float *first = x + b * from * c;
                float *result = out + (b * to + at) * f;
                for (long k = 0, vectors; k < f; k += vectors * LANES) {
                    vectors = widest(f - k);
#define TILE(r, v) gather_tile(r, v, first, from * c, w + k, result + k, to * f, c, f, meetings + at)
                    OF_SIZE(rows, vectors)
#undef TILE
                }
            }
}

/* Lists what meets where: at the outputs what they see, or, turned round, at the inputs what sees them. */
static void list(Meeting *meetings, const Shape *s, int turned)
{
    memset(meetings, 0, (turned ? s->height * s->width : s->out_height * s->out_width) * sizeof(Meeting));
    for (long o = 0, output = 0; o < s->out_height; o++)
        for (long p = 0; p < s->out_width; p++, output++)
            for (long tap = 0; tap < TAPS; tap++) {
                const long input = seen(s, o, p, tap);
                if (input < 0) continue;
                Meeting *meeting = meetings + (turned ? input : output);
                meeting->source[meeting->count] = turned ? output : input, meeting->tap[meeting->count++] = tap;
            }
}

/* `scratch` holds a Meeting for every position of the result, here and below. */
void convolve(const float *x, const float *w, float *out, Meeting *scratch, const Shape *s)
{
    list(scratch, s, 0);
    gather(x, w, out, s, s->height * s->width, s->channels, s->out_height * s->out_width, s->filters, scratch);
}

/* The gradient in x. `turned` holds the weights with channels and filters exchanged. */
void convolve_transposed(const float *g, const float *w, float *x, float *turned, Meeting *scratch, const Shape *s)
{
    enum { SQUARE = 16 }; /* what is turned at once stays in the cache; both sides are multiples of it */
    const long c = s->channels, f = s->filters;
    for (long tap = 0; tap < s->lanes * TAPS; tap++)
        for (long a = 0; a < c; a += SQUARE)
            for (long b = 0; b < f; b += SQUARE)
                for (long i = a; i < a + SQUARE; i++)
                    for (long j = b; j < b + SQUARE; j++) turned[(tap * f + j) * c + i] = w[(tap * c + i) * f + j];
    list(scratch, s, 1);
    gather(g, turned, x, s, s->out_height * s->out_width, f, s->height * s->width, c, scratch);
}

/* The pairs of pixel and gradient that meet in a tap, of some images. */
static long pair(const Shape *s, long tap, long first, long end, long *x_at, long *g_at)
{
    long count = 0;
    for (long b = first; b < end; b++)
        for (long o = 0, g = b * s->out_height * s->out_width; o < s->out_height; o++)
            for (long p = 0; p < s->out_width; p++, g++) {
                const long input = seen(s, o, p, tap);
                if (input < 0) continue;
                x_at[count] = (b * s->height * s->width + input) * s->channels, g_at[count++] = g * s->filters;
            }
    return count;
}

enum { IMAGES = 5 }; /* added up at a time: few enough for their pixels and gradients to stay in the cache */

/* The gradient in w. `scratch` holds 2 * IMAGES * out_height * out_width longs. */
void correlate(const float *x, const float *g, float *w, long *scratch, const Shape *s)
{
    const long c = s->channels, f = s->filters, tiles = (c + TALLEST - 1) / TALLEST, images = s->lanes * s->n;
    long *x_at = scratch, *g_at = scratch + IMAGES * s->out_height * s->out_width;
    memset(w, 0, s->lanes * TAPS * c * f * sizeof(float));
    for (long first = 0, end; first < images; first = end) {
        const long lane = first / s->n, last = (lane + 1) * s->n;
        end = first + IMAGES < last ? first + IMAGES : last;
        for (long tap = 0; tap < TAPS; tap++) {
            const long count = pair(s, tap, first, end, x_at, g_at);
            for (long tile = 0; tile < tiles; tile++) {
                const long a = c * tile / tiles, rows = c * (tile + 1) / tiles - a;
                float *result = w + ((lane * TAPS + tap) * c + a) * f;
                for (long k = 0, vectors; k < f; k += vectors * LANES) {
                    vectors = widest(f - k);
#define TILE(r, v) correlate_tile(r, v, x + a, g + k, result + k, f, x_at, g_at, count)
                    OF_SIZE(rows, vectors)
#undef TILE
                }
            }
        }
    }
}
