"""Gradients of bfloat16 weights in float32.

PyTorch rounds the gradient of a bfloat16 weight to bfloat16 after every micro-batch, so that an update
would depend on how its sequences are cut into micro-batches. Here the sum over a micro-batch's tokens is
computed and kept in float32. What flows between layers stays in bfloat16, as in the forward pass. Linear
layers, embeddings and RMS norms are covered, which is every weight of the usual decoders.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def widen_gradients(model: nn.Module) -> None:
    """Lets every weight of a bfloat16 model have a float32 gradient, of the layers named above unrounded."""
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.grad_dtype = torch.float32
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            module.forward = partial(_linear_forward, module)
        elif isinstance(module, nn.Embedding):
            module.forward = partial(_embedding_forward, module.forward)
        elif _is_rms_norm(module):
            module.forward = partial(_norm_forward, module, module.forward)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear`, whose weight and bias have float32 gradients if they are in bfloat16."""
    if weight.dtype != torch.bfloat16:
        return torch.ops.aten.linear(hidden, weight, bias)
    return _Linear.apply(hidden, weight, bias)


def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices; of bfloat16 ones it is summed and returned in float32."""
    if left.dtype != torch.bfloat16:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.to(torch.float32) @ right.to(torch.float32)


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether the module is an RMS norm of transformers, which multiplies its weight with every token.

    PyTorch's own norms accept no weight but of one token.
    """
    named_so = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    return named_so and [name for name, _ in module.named_parameters()] == ["weight"]


def _linear_forward(module: nn.Linear, hidden: Tensor) -> Tensor:
    return linear(hidden, module.weight, module.bias)


def _embedding_forward(forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    # Some embeddings scale what they look up, so that only the look-up itself is replaced.
    with _Embeddings():
        return forward(*inputs)


def _norm_forward(module: nn.Module, forward: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    if module.weight.dtype != torch.bfloat16:
        return forward(hidden)
    # An attribute of the instance hides the parameter of the same name while the norm computes.
    module.__dict__["weight"] = _Repeat.apply(module.weight, hidden.shape)
    try:
        return forward(hidden)
    finally:
        del module.__dict__["weight"]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.has_bias = bias is not None
        # DeepSpeed replaces `functional.linear` under ZeRO 3 by one that rounds before it adds the bias.
        return torch.ops.aten.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        gradient_NO = gradient.reshape(-1, gradient.shape[-1])
        hidden_NI = hidden.reshape(-1, hidden.shape[-1])
        of_hidden, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_hidden = gradient @ weight
        if ctx.needs_input_grad[1]:
            of_weight = matrix_product(gradient_NO.T, hidden_NI)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = gradient_NO.sum(0, dtype=torch.float32)
        return of_hidden, of_weight, of_bias


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        ids: Tensor,
        weight: Tensor,
        padding_index: int,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = weight.shape[0]
        ctx.padding_index = padding_index
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        wide = gradient.to(torch.float32)
        of_weight = torch.ops.aten.embedding_dense_backward(wide, ids, ctx.rows, ctx.padding_index, False)
        return None, of_weight, None


class _Repeat(torch.autograd.Function):
    """A weight of one token for every token of a micro-batch; its gradient is summed in float32."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, shape: torch.Size) -> Tensor:
        ctx.dimensions = tuple(range(len(shape) - weight.ndim))
        # A copy: under ZeRO 3 the weight itself lies in a buffer that is freed after the forward pass.
        return weight.clone().expand(shape)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.sum(ctx.dimensions, dtype=torch.float32), None


class _Embeddings(TorchFunctionMode):
    """Within it, look-ups in a bfloat16 table give the table a float32 gradient."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.embedding and args[1].dtype == torch.bfloat16:
            padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
            # PyTorch's kernel knows "no padding" as -1.
            return _Embedding.apply(args[0], args[1], -1 if padding is None else padding)
        return function(*args, **kwargs)
