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

/* Which input positions meet which outputs in a tap. */
typedef struct {
    long count, *source, *target;
} Pairs;

/* out[row * out_step] = sum over the meeting of x[row * x_step + source] @ w[tap], for a tile of `vectors` channels;
 * `add` adds it to what is there. */
INLINE void gather_tile(const int rows, const int vectors, const Real *x, long x_step, const Real *w, Real *out,
                        long out_step, long c, long f, const Meeting *meeting, long add)
{
    Vector sums[TALLEST][WIDEST], loaded[WIDEST];
    load(rows, vectors, sums, add ? out : 0, out_step);
    for (long t = 0; t < meeting->count; t++) {
        const Real *from = x + meeting->source[t] * c, *weights = w + meeting->tap[t] * c * f;
        for (long k = 0; k < c; k++) {
            fetch(vectors, loaded, weights + k * f);
            add_products(rows, vectors, sums, from + k, x_step, loaded);
        }
    }
    store(rows, vectors, sums, out, out_step);
}

/* out[row * f] += sum over images and pairs of x[source * rows + row] * g[target * vectors * LANES], for a tile of
 * `vectors` channels of g, both packed; an image is x_step and g_step positions. */
INLINE void correlate_tile(const int rows, const int vectors, const Real *x, long x_step, const Real *g, long g_step,
                           Real *out, long f, const Pairs *pairs, long images)
{
    Vector sums[TALLEST][WIDEST], loaded[WIDEST];
    load(rows, vectors, sums, out, f);
    for (long b = 0; b < images; b++, x += x_step * rows, g += g_step * vectors * LANES)
        for (long t = 0; t < pairs->count; t++) {
            fetch(vectors, loaded, g + pairs->target[t] * vectors * LANES);
            add_products(rows, vectors, sums, x + pairs->source[t] * rows, 1, loaded);
        }
    store(rows, vectors, sums, out, f);
}

/* out (lanes, n, to, f) from x (lanes, n, from, c): each position of `to` gathers its meeting. */
static void gather(const Real *x, const Real *w, Real *out, const Shape *s, long from, long c, long to, long f,
                   const Meeting *meetings, long add)
{
    const long n = s->n, tiles = (n + TALLEST - 1) / TALLEST;
    for (long lane = 0; lane < s->lanes; lane++, x += n * from * c, w += TAPS * c * f, out += n * to * f)
        for (long at = 0; at < to; at++)
            for (long tile = 0; tile < tiles; tile++) {
                const long b = n * tile / tiles, rows = n * (tile + 1) / tiles - b;
                const Real *first = x + b * from * c;
                Real *result = out + (b * to + at) * f;
                for (long k = 0, vectors; k < f; k += vectors * LANES) {
                    vectors = widest(f - k);
#define TILE(r, v) gather_tile(r, v, first, from * c, w + k, result + k, to * f, c, f, meetings + at, add)
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

/* `scratch` holds a Meeting for every position of the result, and `add` adds to what is there, here and below. */
void convolve(const Real *x, const Real *w, Real *out, Meeting *scratch, const Shape *s, long add)
{
    list(scratch, s, 0);
    gather(x, w, out, s, s->height * s->width, s->channels, s->out_height * s->out_width, s->filters, scratch, add);
}

/* The gradient in x. `turned` holds the weights with channels and filters exchanged. */
void convolve_transposed(const Real *g, const Real *w, Real *x, Real *turned, Meeting *scratch, const Shape *s,
                         long add)
{
    enum { SQUARE = 16 }; /* what is turned at once stays in the cache; both sides are multiples of it */
    const long c = s->channels, f = s->filters;
    for (long tap = 0; tap < s->lanes * TAPS; tap++)
        for (long a = 0; a < c; a += SQUARE)
            for (long b = 0; b < f; b += SQUARE)
                for (long i = a; i < a + SQUARE; i++)
                    for (long j = b; j < b + SQUARE; j++) turned[(tap * f + j) * c + i] = w[(tap * c + i) * f + j];
    list(scratch, s, 1);
    gather(g, turned, x, s, s->out_height * s->out_width, f, s->height * s->width, c, scratch, add);
}

/* The pairs of input and output position that meet in each tap. `room` holds 2 * TAPS * out_height * out_width longs. */
static void pair(const Shape *s, Pairs pairs[TAPS], long *room)
{
    const long size = s->out_height * s->out_width;
    for (long tap = 0; tap < TAPS; tap++, room += 2 * size) {
        pairs[tap] = (Pairs){0, room, room + size};
        for (long o = 0, output = 0; o < s->out_height; o++)
            for (long p = 0; p < s->out_width; p++, output++) {
                const long input = seen(s, o, p, tap);
                if (input < 0) continue;
                room[pairs[tap].count] = input, room[size + pairs[tap].count++] = output;
            }
    }
}

/* Columns a … a + width - 1 of x (positions, channels), one position after the other: reading them in a tile's order
 * stays in the nearest cache, where x itself, its rows a power of two apart, would not. */
INLINE void pack(const int width, const Real *x, Real *packed, long positions, long channels)
{
    for (long at = 0; at < positions; at++, x += channels, packed += width)
        memcpy(packed, x, width * sizeof(Real));
}

static void pack_rows(const Real *x, Real *packed, long positions, long c)
{
    for (long tile = 0, tiles = (c + TALLEST - 1) / TALLEST; tile < tiles; tile++) {
        const long a = c * tile / tiles, rows = c * (tile + 1) / tiles - a;
#define TILE(r, v) pack(r, x + a, packed + a * positions, positions, c)
        OF_HEIGHT(rows, 1)
#undef TILE
    }
}

static void pack_vectors(const Real *g, Real *packed, long positions, long f)
{
    for (long k = 0, vectors; k < f; k += vectors * LANES) {
        vectors = widest(f - k);
#define TILE(r, v) pack(v * LANES, g + k, packed + k * positions, positions, f)
        OF_SIZE(1, vectors)
#undef TILE
    }
}

enum { CACHE = 24 << 10 }; /* bytes of pixels and gradients that a tile may go through: most of a nearest cache */

/* The gradient in w, from as many images at a time as fit the cache. `packed` holds what they hold, of x and g;
 * `scratch` 2 * TAPS * out_height * out_width longs. */
void correlate(const Real *x, const Real *g, Real *w, Real *packed, long *scratch, const Shape *s, long add)
{
    const long c = s->channels, f = s->filters, tiles = (c + TALLEST - 1) / TALLEST;
    const long from = s->height * s->width, to = s->out_height * s->out_width;
    const long image = (from * TALLEST + to * WIDEST * LANES) * sizeof(Real), most = CACHE / image;
    Pairs pairs[TAPS];
    pair(s, pairs, scratch);
    if (!add) memset(w, 0, s->lanes * TAPS * c * f * sizeof(Real));
    for (long lane = 0; lane < s->lanes; lane++, w += TAPS * c * f)
        for (long first = 0, images; first < s->n; first += images, x += images * from * c, g += images * to * f) {
            images = most < 1 ? 1 : most < s->n - first ? most : s->n - first;
            Real *rows_of_x = packed, *vectors_of_g = packed + images * from * c;
            pack_rows(x, rows_of_x, images * from, c);
            pack_vectors(g, vectors_of_g, images * to, f);
            for (long tap = 0; tap < TAPS; tap++)
                for (long k = 0, vectors; k < f; k += vectors * LANES) {
                    vectors = widest(f - k);
                    const Real *there = vectors_of_g + k * images * to;
                    for (long tile = 0; tile < tiles; tile++) {
                        const long a = c * tile / tiles, rows = c * (tile + 1) / tiles - a;
                        const Real *here = rows_of_x + a * images * from;
                        Real *result = w + (tap * c + a) * f + k;
#define TILE(r, v) correlate_tile(r, v, here, from, there, to, result, f, pairs + tap, images)
                        OF_SIZE(rows, vectors)
#undef TILE
                    }
                }
        }
}
