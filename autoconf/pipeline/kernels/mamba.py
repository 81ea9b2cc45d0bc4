"""A fake version of Mamba-2's fused training kernel: convolution, scan, gated norm and output projection in one.

Allocations follow mamba_ssm 2.3, ops/triton/ssd_combined.py, MambaSplitConv1dScanCombinedFn, with a gated norm and an
output projection and without initial states; other files that comments name are in the same folder. With kernels that
do nothing, on one multiprocessor, that code allocates exactly the same bytes. With more multiprocessors than chunks it
splits the sums of ``_chunk_state_bwd_db``, ``_chunk_scan_bwd_dC`` and ``_chunk_scan_bwd_dcb`` into more parts, which is
omitted here: with 132 multiprocessors and the sizes of granite-4.0-h-1b with two groups, the peak of a backward pass is
16.5 MiB too low with 1,018 tokens, 1.8 MiB with 4,078, and exact with 40,780.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

_BLOCK, _STATE_BLOCK = 32, 64  # the smallest block that autotuning tries; workspaces have the size for it


class _Sizes(NamedTuple):
    heads: int
    head_dim: int
    groups: int
    state: int
    chunk: int


@dataclass(frozen=True)
class _Scan:
    """The tensors that a scan of a projection allocates."""

    projected: torch.Tensor  # (batch, tokens, gate + convolved + heads)
    sizes: _Sizes

    def _float32(self, *shape: int) -> torch.Tensor:
        return self.projected.new_empty((self.projected.shape[0], *shape), dtype=torch.float32)

    @property
    def _chunks(self) -> int:
        return -(-self.projected.shape[1] // self.sizes.chunk)

    def hidden(self) -> torch.Tensor:
        return self.per_token(self.sizes.heads * self.sizes.head_dim)

    def convolved(self) -> torch.Tensor:
        return self.per_token(self.sizes.heads * self.sizes.head_dim + 2 * self.sizes.groups * self.sizes.state)

    def per_token(self, width: int) -> torch.Tensor:
        return self.projected.new_empty((*self.projected.shape[:2], width))

    def steps(self) -> torch.Tensor:
        """One number for each head and token, with tokens rounded up to whole chunks."""
        return self._float32(self.sizes.heads, self._chunks, self.sizes.chunk)

    def states(self) -> torch.Tensor:
        """One state for each head and chunk."""
        return self._float32(self._chunks, self.sizes.heads, self.sizes.head_dim * self.sizes.state)

    def products(self) -> torch.Tensor:
        """Products of C and B between tokens of a chunk (ssd_bmm.py, _bmm_chunk_fwd); heads of a group share them."""
        return self._float32(self._chunks, self.sizes.groups, self.sizes.chunk, self.sizes.chunk)

    def passed_states(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The states before each chunk and the last one: _chunk_state_fwd, then _state_passing_fwd."""
        of_chunks = self.states()
        final = self._float32(self.sizes.heads, self.sizes.head_dim * self.sizes.state)
        return torch.empty_like(of_chunks, dtype=dtype), final

    def passed_back(self, states: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """ssd_state_passing.py, _state_passing_bwd: gradient and states in the projection's dtype, and of decays."""
        gradient, states = torch.empty_like(gradient, dtype=self.projected.dtype), states.to(self.projected.dtype)
        blocks = -(-self.sizes.head_dim * self.sizes.state // _STATE_BLOCK)
        return gradient, states, self._float32(self.sizes.heads, self._chunks, blocks).sum(dim=-1)

    def input_gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        """_chunk_scan_chunk_state_bwd_dx: gradients of the steps and of D; that of the input is already allocated."""
        of_blocks = self._float32(self._chunks, self.sizes.heads, -(-self.sizes.chunk // _BLOCK))
        return self.steps(), of_blocks.sum(dim=(0, 1, 3))

    def group_gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of B (ssd_chunk_state.py, _chunk_state_bwd_db) or C (ssd_chunk_scan.py, _chunk_scan_bwd_dC)."""
        decays = self.steps()
        return self._float32(self.projected.shape[1], 1, self.sizes.groups, self.sizes.state).sum(2), decays

    def decay_gradient(self) -> torch.Tensor:
        """ssd_chunk_scan.py, _chunk_scan_bwd_ddAcs_stable."""
        blocks = -(-self.sizes.chunk // _BLOCK)
        return self._float32(self.sizes.heads, self._chunks, blocks, self.sizes.chunk).sum(dim=3)


class _SplitConv1dScanCombined(torch.autograd.Function):
    """Saves the projection, the output of the scan, the scale of the norm and the weights; recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        sizes: _Sizes,
        projected: torch.Tensor,
        out_weight: torch.Tensor,
        out_bias: torch.Tensor | None,
        *weights: torch.Tensor | None,
    ) -> torch.Tensor:
        scan = _Scan(projected, sizes)
        _convolved = scan.convolved()
        # _mamba_chunk_scan_combined_fwd. All tensors except the products live until this function returns.
        _steps = [scan.steps(), scan.steps()]  # ssd_chunk_state.py, _chunk_cumsum_fwd
        _states = scan.passed_states(projected.dtype)
        products = scan.products()
        scanned = scan.hidden()  # ssd_chunk_scan.py, _chunk_scan_fwd
        del products
        out = torch.empty_like(scanned)  # layernorm_gated.py, _layer_norm_fwd
        scale = projected.new_empty(projected.shape[0] * projected.shape[1] * sizes.groups, dtype=torch.float32)
        ctx.autocast = torch.is_autocast_enabled("cuda")
        if ctx.autocast:
            dtype = torch.get_autocast_dtype("cuda")
            out, out_weight = out.to(dtype), out_weight.to(dtype)
            out_bias = None if out_bias is None else out_bias.to(dtype)
        out = F.linear(out, out_weight, out_bias)
        ctx.sizes = sizes
        ctx.save_for_backward(projected, out_weight, out_bias, *weights, scanned, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        projected, out_weight, out_bias, conv_weight, conv_bias, dt_bias, A, D, norm_weight, _, _ = ctx.saved_tensors
        scan = _Scan(projected, ctx.sizes)
        normed = scan.hidden()
        _convolved = scan.convolved()
        d_projected = torch.empty_like(projected)
        _d_convolved = scan.convolved()
        with torch.autocast("cpu", torch.bfloat16, enabled=ctx.autocast):  # as custom_bwd does on a GPU
            _d_normed = F.linear(gradient, out_weight.t())
        _d_scanned = scan.hidden()  # layernorm_gated.py, _layer_norm_bwd
        d_norm_weight = torch.empty_like(norm_weight)
        d_dt_bias, d_A, d_D = _scan_backward(scan, dt_bias, A, D)
        # Weights get gradients even if they are frozen.
        with torch.autocast("cpu", torch.bfloat16, enabled=ctx.autocast):
            d_out_weight = torch.einsum("bso,bsd->od", gradient, normed)
        d_out_bias = None if out_bias is None else gradient.sum(dim=(0, 1))
        # causal_conv1d 1.6, cpp_functions.py, causal_conv1d_bwd_function
        d_conv_weight, d_conv_bias = (
            None if weight is None else torch.zeros_like(weight, dtype=torch.float32).type_as(weight)
            for weight in (conv_weight, conv_bias)
        )
        of_weights = (d_conv_weight, d_conv_bias, d_dt_bias, d_A, d_D, d_norm_weight)
        return None, d_projected, d_out_weight, d_out_bias, *of_weights


def _scan_backward(
    scan: _Scan, dt_bias: torch.Tensor, A: torch.Tensor, D: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """_mamba_chunk_scan_combined_bwd: gradients of its weights; those of the projection are already allocated."""
    _dt = scan.per_token(scan.sizes.heads)
    _steps = [scan.steps(), scan.steps()]
    _products = scan.products()
    states, _final = scan.passed_states(torch.float32)
    d_states = scan.states()  # ssd_chunk_scan.py, _chunk_scan_bwd_dstates
    d_states, states, of_chunks = scan.passed_back(states, d_states)
    _d_dt, d_D = scan.input_gradient()
    _d_B, next_decays = scan.group_gradient()
    _d_C, previous_decays = scan.group_gradient()
    _d_products = scan.products().unsqueeze(2).sum(2)  # ssd_chunk_scan.py, _chunk_scan_bwd_dcb
    previous_decays[..., -1] += of_chunks
    previous = previous_decays.flip([-1]).cumsum(dim=-1).flip([-1])
    decays = scan.decay_gradient()
    decays += next_decays + previous
    # ssd_chunk_state.py, _chunk_cumsum_bwd
    return torch.empty_like(dt_bias, dtype=torch.float32), torch.empty_like(A, dtype=torch.float32), d_D.to(D.dtype)


def split_conv1d_scan_combined(
    projected: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    chunk_size: int,
    *,
    rmsnorm_weight: torch.Tensor,
    outproj_weight: torch.Tensor,
    outproj_bias: torch.Tensor | None = None,
    headdim: int,
    ngroups: int = 1,
    **_: Any,
) -> torch.Tensor:
    """Replace mamba_ssm's ``mamba_split_conv1d_scan_combined``, with the same arguments.

    >>> from torch import empty
    >>> heads = [empty(8, device="meta") for _ in range(3)]
    >>> weights = {"rmsnorm_weight": empty(128, device="meta"), "outproj_weight": empty(64, 128, device="meta")}
    >>> projected, convolution = empty(2, 512, 128 + 192 + 8, device="meta"), empty(192, 4, device="meta")
    >>> split_conv1d_scan_combined(projected, convolution, None, *heads, 256, headdim=16, **weights).shape
    torch.Size([2, 512, 64])
    """
    heads = D.shape[0]
    sizes = _Sizes(heads, headdim, ngroups, (conv_weight.shape[0] - heads * headdim) // (2 * ngroups), chunk_size)
    weights = (conv_weight, conv_bias, dt_bias, A, D, rmsnorm_weight)
    return _SplitConv1dScanCombined.apply(sizes, projected, outproj_weight, outproj_bias, *weights)
