"""A kernel that applies one activation, for the tests of activations in Triton."""

import triton
import triton.language as tl

from affnet_kernels.kernels.activations import activation_value, activation_vjp


@triton.jit
def activation_kernel(v_ptr, value_ptr, vjp_ptr, N: tl.constexpr, ACTIVATION: tl.constexpr):
    at = tl.arange(0, N)
    v = tl.load(v_ptr + at)
    tl.store(value_ptr + at, activation_value(v, ACTIVATION))
    tl.store(vjp_ptr + at, activation_vjp(tl.full((N,), 1.0, tl.float32), v, ACTIVATION))
