"""Layers and losses. Nothing in here knows which array library it runs on."""

from typing import TYPE_CHECKING

from xbp.nn.activations import (
    ELU,
    GELU,
    SELU,
    Elementwise,
    LeakyReLU,
    ReLU,
    ScaledTanh,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from xbp.nn.attention import MultiheadAttention
from xbp.nn.backward import Backward, for_parameters
from xbp.nn.batch_norm import BatchNorm1d, BatchNorm2d
from xbp.nn.class_losses import MultiMarginLoss, NLLLoss
from xbp.nn.classes import ClassLoss
from xbp.nn.composite import Composite
from xbp.nn.containers import Concatenate, Parallel, Residual
from xbp.nn.conv import Conv1d, Conv2d
from xbp.nn.conv_transpose import ConvTranspose2d
from xbp.nn.cross_entropy import BCEWithLogitsLoss, CrossEntropyLoss
from xbp.nn.dropout import Dropout
from xbp.nn.embedding import Embedding
from xbp.nn.embedding_losses import CosineEmbeddingLoss, EmbeddingLoss, TripletMarginLoss
from xbp.nn.gated import GLU, SwiGLU
from xbp.nn.layer import Layer
from xbp.nn.linear import Linear
from xbp.nn.losses import (
    EntrywiseLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    Loss,
    MSELoss,
    RegressionLoss,
    SmoothL1Loss,
)
from xbp.nn.norm import GroupNorm, LayerNorm, RMSNorm
from xbp.nn.operation import Operation, OperationLayer, Statistics
from xbp.nn.parameter import Buffer, Parameter
from xbp.nn.pool import AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d
from xbp.nn.positions import LearnedPositions, SinusoidalPositions
from xbp.nn.prelu import PReLU
from xbp.nn.rearrange import Identity, Permute, Reshape
from xbp.nn.recurrent import GRU, LSTM, RNN
from xbp.nn.resize import Upsample, ZeroPad2d
from xbp.nn.scan import Recurrent
from xbp.nn.sequential import Sequential, named_outputs
from xbp.nn.sequential import trace as trace
from xbp.nn.shape import Flatten, LastTimeStep
from xbp.nn.shape import Last as Last
from xbp.nn.softmax import LogSoftmax, Softmax
from xbp.nn.statistics import pool_statistics, update_statistics
from xbp.nn.summary import LayerSummary, Summary, summary
from xbp.nn.transformer import TransformerBlock

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "Backward",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "ClassLoss",
    "Composite",
    "Concatenate",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "CosineEmbeddingLoss",
    "CrossEntropyLoss",
    "Dropout",
    "ELU",
    "Elementwise",
    "Embedding",
    "EmbeddingLoss",
    "EntrywiseLoss",
    "Flatten",
    "GELU",
    "GLU",
    "GRU",
    "GroupNorm",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "LSTM",
    "LastTimeStep",
    "Layer",
    "LayerNorm",
    "LayerSummary",
    "Summary",
    "LeakyReLU",
    "LearnedPositions",
    "Linear",
    "LogSoftmax",
    "Loss",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "MultiMarginLoss",
    "MultiheadAttention",
    "NLLLoss",
    "Operation",
    "OperationLayer",
    "PReLU",
    "Parallel",
    "Parameter",
    "Permute",
    "RMSNorm",
    "RNN",
    "ReLU",
    "Recurrent",
    "RegressionLoss",
    "Reshape",
    "Residual",
    "SELU",
    "ScaledTanh",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositions",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Statistics",
    "SwiGLU",
    "Tanh",
    "TransformerBlock",
    "TripletMarginLoss",
    "Upsample",
    "ZeroPad2d",
    "for_parameters",
    "named_outputs",
    "pool_statistics",
    "summary",
    "update_statistics",
]

if not TYPE_CHECKING:  # a type checker shall see the names above alone
    from xbp.nn.elsewhere import missing_from_nn as __getattr__  # noqa: F401
