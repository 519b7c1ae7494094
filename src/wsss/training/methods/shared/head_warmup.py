"""Training of the classification head alone, on features of the frozen backbone.

On a few hundred images this reaches a good classifier in a minute where full fine-tuning from the
start stalls.
"""

import torch
import torch.nn.functional as F

from ....runtime.io.image_io import read_image
from ....runtime.refine.geometry import image_tensor, resize
from ...data.image_set import ImageSet
from ...engine.run import Run
from ...recipe.cam import HeadWarmup
from .classifier import CamClassifier
from .losses import classification_loss


def warm_up_head(run: Run, network: CamClassifier, settings: HeadWarmup) -> None:
    """Fit the head to pooled features of every image and its mirror by full-batch AdamW.

    The loss is convex in the head, so the result depends little on the schedule; it is the same
    on every process, hence nothing is exchanged.
    """
    if settings.epochs == 0:
        return
    network.to(run.device).eval()
    features, labels = pooled_features(run, network, run.train_set, settings)
    torch.manual_seed(run.recipe.seed)
    head = network.classifier
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    with run.progress.task("head warm-up", settings.epochs) as task:
        for _ in range(settings.epochs):
            optimizer.zero_grad(set_to_none=True)
            dropped = F.dropout(features, network.dropout.probability)
            loss = classification_loss(network.classify_pooled(dropped), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            task.advance(loss=loss.item())


@torch.no_grad()
def pooled_features(
    run: Run, network: CamClassifier, images: ImageSet, settings: HeadWarmup
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, F) features and (n, C) labels, n = images x sizes x 2 mirrors."""
    features, labels = [], []
    with run.progress.task("frozen features", len(images.samples)) as task:
        for sample in images.samples:
            pixels = image_tensor(read_image(sample.image_path), run.device)
            label = torch.from_numpy(sample.label_vector(len(images.classes)))
            for side in settings.image_sizes:
                square = resize(pixels, (side, side), "reference")
                pair = torch.cat([square, square.flip(-1)])
                features.append(network.pooled_features(pair))
                labels += [label, label]
            task.advance()
    return torch.cat(features), torch.stack(labels).to(run.device)
