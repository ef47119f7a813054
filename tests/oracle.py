"""Scores as the formulae of docs' method page state them: float64 NumPy, loops, nothing from the product.

Weights come as a dict of arrays under the names that torch gives them in a state dict (lstm.weight_ih_l0, key.weight ...).
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Oracle:
    weights: dict
    normalise_features: bool = True
    normalise_values: bool = False
    normalisation: str = "sigmoid"
    negative_weight: bool = False
    unit_encodings: bool = False
    slack: float = 0.0

    def __post_init__(self):
        self.weights = {name: np.asarray(array, dtype=np.float64) for name, array in self.weights.items()}

    def features(self, segment):
        """Frame features [T, D] as the linear maps take them."""
        segment = np.asarray(segment, dtype=np.float64)
        if not self.normalise_features:
            return segment
        return np.array([unit(frame - self.weights["feature_mean"]) for frame in segment])

    def linear(self, name, vector):
        return self.weights[f"{name}.weight"] @ vector + self.weights[f"{name}.bias"]

    def keys(self, segment):
        return np.array([self.linear("key", frame) for frame in self.features(segment)])

    def values(self, segment):
        values = [self.linear("value", frame) for frame in self.features(segment)]
        return np.array([unit(value) if self.normalise_values else value for value in values])

    def query_vector(self, segment):
        """The LSTM cell of Hochreiter and Schmidhuber with a forget gate, frame by frame, then the query map."""
        width = self.weights["lstm.weight_hh_l0"].shape[1]
        hidden, cell = np.zeros(width), np.zeros(width)
        for frame in self.features(segment):
            gates = (
                self.weights["lstm.weight_ih_l0"] @ frame
                + self.weights["lstm.bias_ih_l0"]
                + self.weights["lstm.weight_hh_l0"] @ hidden
                + self.weights["lstm.bias_hh_l0"]
            )
            for unit_number in range(width):
                i, f, g = (gates[block * width + unit_number] for block in range(3))
                cell[unit_number] = sigmoid(f) * cell[unit_number] + sigmoid(i) * math.tanh(g)
            hidden = np.array([sigmoid(gates[3 * width + u]) * math.tanh(cell[u]) for u in range(width)])
        return self.linear("query", hidden)

    def attention(self, query_vector, segment, target_encoding=None):
        """Softmax over time of the heat map [T], 0 for a frame that only repeats the one before it.

        target_encoding: for a candidate's segment, whose frames are also judged by how they agree with the target.
        """
        heat = [float(query_vector @ key) for key in self.keys(segment)]
        heat = [min(s, max(heat) - self.slack) for s in heat]
        if target_encoding is not None:
            row, _ = self.row()
            beta = max(float(self.weights["agreement"]), 0.0)
            distances = [row @ (target_encoding - value) ** 2 for value in self.values(segment)]
            heat = [s + beta * distance for s, distance in zip(heat, distances, strict=True)]
        repeated = [t > 0 and np.array_equal(segment[t], segment[t - 1]) for t in range(len(segment))]
        exponentials = [0.0 if again else math.exp(s - max(heat)) for s, again in zip(heat, repeated, strict=True)]
        return np.array(exponentials) / math.fsum(exponentials)

    def encoding(self, query_vector, segment, target_encoding=None):
        attention = self.attention(query_vector, segment, target_encoding)
        encoding = sum(a * v for a, v in zip(attention, self.values(segment), strict=True))
        return unit(encoding) if self.unit_encodings else encoding

    def row(self):
        """The weights of the squared differences [d_v], and the bias."""
        weight, bias = self.weights["classifier.weight"], self.weights["classifier.bias"]
        softmax = self.normalisation == "softmax"
        row = weight[1] - weight[0] if softmax else weight[1]
        row = np.array([-math.log1p(math.exp(r)) for r in row]) if self.negative_weight else row
        return row, bias[1] - bias[0] if softmax else bias[1]

    def score(self, target_segment, candidate_segment):
        query_vector = self.query_vector(target_segment)
        target_encoding = self.encoding(query_vector, target_segment)
        difference = target_encoding - self.encoding(query_vector, candidate_segment, target_encoding)
        if self.negative_weight:
            row, bias = self.row()
            return sigmoid(bias + row @ difference**2)
        different, same = self.linear("classifier", difference**2)
        if self.normalisation == "softmax":
            top = max(different, same)
            return math.exp(same - top) / (math.exp(same - top) + math.exp(different - top))
        return sigmoid(same)

    def scores(self, target, candidate):
        """[N, K] scores of target segments against candidate segments, each a list of [T, D]."""
        return np.array([[self.score(p, g) for g in candidate] for p in target])


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def unit(vector):
    return vector / math.sqrt(sum(float(x) ** 2 for x in vector))
