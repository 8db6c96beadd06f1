#pragma once

#include "real.h"

/* Activations as native/__init__.py numbers them. */
enum { RELU, SOFTPLUS, TANH };

/* An activation's second and third derivatives, divided by its first: from its value and its first derivative. */
INLINE Real second(const int kind, Real value, Real slope)
{
    return kind == SOFTPLUS ? 1 - slope : kind == TANH ? -2 * value : 0;
}

INLINE Real third(const int kind, Real value, Real slope)
{
    return kind == SOFTPLUS ? (1 - slope) * (1 - 2 * slope) : kind == TANH ? 6 * value * value - 2 : 0;
}
