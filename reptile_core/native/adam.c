/* A step of Adam with beta1 = 0 in one pass over memory: everything is contiguous. */

#include <tgmath.h>

#include "real.h"

/* v' = beta2 v + (1 - beta2) g^2 and phi' = phi - learning_rate g / (sqrt(v' / correction) + eps). */
void adam(const Real *phi, const Real *g, const Real *v, Real *phi_after, Real *v_after, long count, double beta2,
          double correction, double learning_rate, double eps)
{
    const Real keep = beta2, add = 1 - beta2, scale = 1 / correction, rate = learning_rate, floor = eps;
    for (long i = 0; i < count; i++) {
        const Real moment = keep * v[i] + add * g[i] * g[i];
        v_after[i] = moment;
        phi_after[i] = phi[i] - rate * g[i] / (sqrt(moment * scale) + floor);
    }
}
