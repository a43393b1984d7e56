"""Groups of rows that are alike, found in a code that is learnt."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dltrain.errors import must, real, whole
from dltrain.tasks.autoencoder import Autoencoder, errors
from dltrain.tasks.task import Columns, Move

CLUSTERS = 8  # where there is no target to say how many
COMPARED = 2000  # rows at most whose silhouettes are averaged: each is compared with all


class Clustering(Autoencoder):
    """k-means on the code of an autoencoder that keeps neighbours together.

    Beside the autoencoder's error the code is to tell which `neighbours` of a row are the nearest among the rows of its
    shard, by InfoNCE with the Cauchy kernel of t-SNE (https://arxiv.org/abs/2206.01816), with weight `attraction`; the
    larger the batch, the nearer they are, and the number of shards is part of the mathematics. The centres are those of
    training rows once training is over; the metrics on the way are of centres that validation rows give. Predicts the
    cluster of a row, from 1, and how far the row's code is from its centre.
    """

    concludes_on = "train"
    measured_on = ("features", "target")
    measures: Mapping[str, str] = {
        **Autoencoder.measures,
        "silhouette": "max",
        "adjusted_rand": "max",
    }

    def __init__(
        self,
        data: Any,
        model: Callable,
        decoder: Callable,
        code: int = 10,
        noise: float = 0.0,
        clusters: int | None = None,
        attraction: float = 10.0,
        neighbours: int = 5,
    ) -> None:
        super().__init__(data, model, decoder, code, noise)
        fits = clusters is None or whole(clusters, 2)
        must(fits, "task.clusters", "a whole number of at least 2, or null", clusters)
        must(real(attraction) and attraction >= 0, "task.attraction", "at least 0", attraction)
        must(whole(neighbours, 1), "task.neighbours", "a whole number of at least 1", neighbours)
        self.attraction, self.neighbours = attraction, neighbours
        self.known = data.target.kind in ("binary", "classes")
        self.centres: Tensor  # (clusters, code), zeros until training is over
        self.register_buffer("centres", torch.zeros(clusters or len(data.target.classes) or CLUSTERS, code))

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        features = batch["features"]
        code, told = self.network(self._seen(features))
        total = errors(told, features).sum()
        if len(features) > 1:  # one row has no neighbours
            total = total + self.attraction * self._unlike(code.float(), features.flatten(1))
        yield "network", total, len(features)

    def _unlike(self, code: Tensor, features: Tensor) -> Tensor:
        """The cross entropy of a row's nearest neighbours and their nearness in the code, summed over rows."""
        near = squares(features).topk(min(self.neighbours, len(code) - 1), largest=False).indices
        return -(-squares(code).log1p()).log_softmax(1).gather(1, near).mean(1).sum()

    def conclude(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> None:
        self.centres.copy_(self._means(predictions[:, :-1]))

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """As an autoencoder's; how well clusters are apart, and how well they agree with classes, where they are."""
        from sklearn.metrics import adjusted_rand_score

        codes = predictions[:, :-1]
        found, _ = nearest(codes, self.centres.cpu() if self.centres.any() else self._means(codes))
        agreement = {"adjusted_rand": float(adjusted_rand_score(rows["target"].flatten(), found))} if self.known else {}
        return super().metrics(predictions, rows) | {"silhouette": silhouette(codes, found)} | agreement

    def columns(self, predictions: Tensor) -> Columns:
        found, apart = nearest(predictions[:, :-1], self.centres)
        return {"cluster": (found + 1).numpy(), "distance": apart.numpy()}

    def _means(self, codes: Tensor) -> Tensor:
        """(clusters, code) of centres by k-means++ and Lloyd's algorithm; of fewer rows, the first again and again."""
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # several threads add up in any order
            distinct = len(codes.unique(dim=0))
            means = KMeans(min(len(self.centres), distinct), n_init=10, random_state=0).fit(codes.double().numpy())
        centres = torch.from_numpy(means.cluster_centers_).float()
        return torch.cat([centres, centres[:1].expand(len(self.centres) - len(centres), -1)])


def squares(rows: Tensor) -> Tensor:
    """(n, n) of squared distances between rows (n, width), from itself infinite."""
    lengths = rows.square().sum(1)
    far = (lengths[:, None] + lengths - 2 * rows @ rows.T).clamp(min=0)
    return far.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), torch.inf)


def nearest(codes: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) of the nearest centre and (rows,) of the distance from it."""
    apart = torch.cdist(codes, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.argmin(1), apart.amin(1)


def silhouette(codes: Tensor, found: Tensor) -> float:
    """The mean silhouette of rows (doi.org/10.1016/0377-0427(87)90125-7); 0 where there is nothing to compare."""
    from sklearn.metrics import silhouette_score

    some = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))[:COMPARED]
    codes, found = codes[some], found[some]
    comparable = 1 < len(found.unique()) < len(found)
    return float(silhouette_score(codes.double().numpy(), found.numpy())) if comparable else 0.0
