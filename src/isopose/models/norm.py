"""Batch norm whose statistics are of the whole batch, on however many ranks it is spread."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopose.ranks import ranks, summed


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, and on several ranks the same as on one.

    ``torch.nn.SyncBatchNorm`` is for GPUs alone, and would have to take this one's place and give it back.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)``; in training the batch is that of all ranks."""
        if not self.training or ranks() == 1:
            return super().forward(image)
        tracked = (self.num_batches_tracked, self.running_mean, self.running_var, self.momentum)
        batches, means, variances, momentum = tracked
        assert batches is not None, "it tracks"
        assert means is not None, "it tracks"
        assert variances is not None, "it tracks"
        assert momentum is not None, "it forgets"
        out, mean, variance, count = _OfAllRanks.apply(image, self.weight, self.bias, self.eps)
        with torch.no_grad():
            batches.add_(1)
            means.lerp_(mean, momentum)
            variances.lerp_((variance * count / (count - 1.0)).float(), momentum)
        normalized: Tensor = out
        return normalized


class _OfAllRanks(torch.autograd.Function):
    """Ioffe and Szegedy (2015), with sums over the ranks; keeps the input alone for the way back."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Means first and then squares around them: the difference of large sums would lose digits.
        count = summed(image.new_tensor(image.numel() / image.shape[1], dtype=torch.float64))
        mean = (summed(image.sum((0, 2, 3), dtype=torch.float64)) / count).float()
        around = (image.float() - mean[:, None, None]).square().sum((0, 2, 3), dtype=torch.float64)
        variance = (summed(around) / count).float()
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
        # The batch's own mean and variance moved with the input, and so did every rank's output.
        along = summed(torch.stack([to_bias, to_weight])) / count.float()
        inner = gradient - along[0, :, None, None] - normalized * along[1, :, None, None]
        to_image = inner * (weight * scale)[:, None, None]
        return to_image.to(image.dtype), to_weight, to_bias, None
