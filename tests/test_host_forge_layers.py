"""Layers as Forge builds them: quantized ones that do not say their size, and weights in another number format."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from extension.injection.layer import Layer, kind_of
from extension.injection.merged import MergedForward

torch.set_num_threads(1)


class State:
    def __init__(self, shape):
        self.shape = shape


class Codes(nn.Parameter):
    """Four-bit codes, packed into one column, beside a note of the matrix they stand for."""

    def __new__(cls, matrix):
        self = super().__new__(cls, torch.zeros(matrix.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.quant_state, self.matrix = State(matrix.shape), matrix
        return self


class Linear(nn.Module):
    """A quantizer's layer: it keeps codes, and knows neither its inputs nor its outputs by name."""

    def __init__(self, matrix, bias):
        super().__init__()
        self.weight = Codes(matrix)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.matrix, self.bias)


def test_quantized_layer_is_found_and_read():
    matrix, bias = torch.randn(6, 4), torch.randn(6)
    module = Linear(matrix, bias)
    assert kind_of(module) == "linear"
    layer = Layer(module)
    assert layer.shape == (6, 4) and not layer.readable()
    assert torch.allclose(layer.weight(torch.randn(2, 4)), matrix, atol=1e-5)


def test_other_modules_with_a_matrix_are_no_linear_layers():
    assert kind_of(nn.Embedding(3, 4)) is None
    assert kind_of(nn.Bilinear(2, 3, 4)) is None


def test_merged_copy_follows_the_number_format_that_is_computed_in():
    module = nn.Linear(4, 6).to(torch.bfloat16)
    merged = MergedForward(Layer(module), module.weight.detach() * 2, module.bias.detach())
    x = torch.randn(3, 4)
    assert merged(x).dtype == torch.float32
    assert torch.allclose(merged(x), F.linear(x, module.weight.float() * 2, module.bias.float()), atol=1e-6)
