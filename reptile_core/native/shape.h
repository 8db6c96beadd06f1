#pragma once

/* A 3 x 3 "same" convolution's extent, as native/__init__.py passes it. Images are (n, height, width, channels),
 * outputs (n, out_height, out_width, filters), weights (3, 3, channels, filters), all with leading lanes. */

enum { KERNEL = 3, TAPS = KERNEL * KERNEL };

typedef struct {
    long lanes, n, height, width, channels, stride, out_height, out_width, before_rows, before_columns, filters;
} Shape;

/* The input position that an output position sees through a tap; -1 in the padding. */
static inline long seen(const Shape *s, long o, long p, long tap)
{
    const long row = o * s->stride + tap / KERNEL - s->before_rows;
    const long column = p * s->stride + tap % KERNEL - s->before_columns;
    return row < 0 || row >= s->height || column < 0 || column >= s->width ? -1 : row * s->width + column;
}
