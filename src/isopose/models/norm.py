"""Batch norm over the whole batch, however many processes (ranks) share it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopose.ranks import ranks, summed


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm of images that takes its statistics over all ranks in training.

    With one rank, and in evaluation, it is PyTorch's.
    """

    # Not torch.nn.SyncBatchNorm: it refuses CPU tensors (torch 2.13), and several CPU processes can train.

    def forward(self, image: Tensor) -> Tensor:
        """Normalize this rank's images.

        Args:
            image: ``(N, C, H, W)``, this rank's part of the batch.

        Returns:
            The same shape; in training normalized by mean and variance over the batches of all ranks.
        """
        if not self.training or ranks() == 1:
            return super().forward(image)
        batches, momentum = self.num_batches_tracked, self.momentum
        means, variances = self.running_mean, self.running_var
        assert batches is not None, "track_running_stats is on"
        assert means is not None, "track_running_stats is on"
        assert variances is not None, "track_running_stats is on"
        assert momentum is not None, "the running statistics are exponential means"
        out, mean, variance, count = _BatchNormOverRanks.apply(image, self.weight, self.bias, self.eps)
        with torch.no_grad():
            batches.add_(1)
            means.lerp_(mean, momentum)
            variances.lerp_((variance * count / (count - 1.0)).float(), momentum)
        return out


class _BatchNormOverRanks(torch.autograd.Function):
    """Batch norm (Ioffe and Szegedy, 2015) whose sums run over all ranks.

    Only the input is saved for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Two passes, mean first: the variance as a difference of two large sums would lose digits.
        count = summed(image.new_tensor(image.numel() / image.shape[1], dtype=torch.float64))
        mean = (summed(image.sum((0, 2, 3), dtype=torch.float64)) / count).float()
        squares = (image.float() - mean[:, None, None]).square().sum((0, 2, 3), dtype=torch.float64)
        variance = (summed(squares) / count).float()
        ctx.save_for_backward(image, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        out = F.batch_norm(image, mean, variance, weight, bias, training=False, eps=eps)
        return out, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        image, weight, mean, variance, count = ctx.saved_tensors
        gradient = gradients[0].float()
        scale = (variance + ctx.eps).rsqrt()
        normalized = (image.float() - mean[:, None, None]) * scale[:, None, None]
        to_bias = gradient.sum((0, 2, 3))
        to_weight = (gradient * normalized).sum((0, 2, 3))
        # Mean and variance depend on every rank's input, so their gradients are summed over the ranks.
        means = summed(torch.stack([to_bias, to_weight])) / count.float()
        to_normalized = gradient - means[0, :, None, None] - normalized * means[1, :, None, None]
        to_image = to_normalized * (weight * scale)[:, None, None]
        return to_image.to(image.dtype), to_weight, to_bias, None
