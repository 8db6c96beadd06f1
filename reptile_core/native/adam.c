/* A step of Adam with beta1 = 0 in one pass over memory: everything is contiguous float32. */

#include <math.h>

/* v' = beta2 v + (1 - beta2) g^2 and phi' = phi - learning_rate g / (sqrt(v' / correction) + eps). */
void adam(const float *phi, const float *g, const float *v, float *phi_after, float *v_after, long count, double beta2,
          double correction, double learning_rate, double eps)
{
    const float keep = beta2, add = 1 - beta2, scale = 1 / correction, rate = learning_rate, floor = eps;
    for (long i = 0; i < count; i++) {
        const float moment = keep * v[i] + add * g[i] * g[i];
        v_after[i] = moment;
        phi_after[i] = phi[i] - rate * g[i] / (sqrtf(moment * scale) + floor);
    }
}
