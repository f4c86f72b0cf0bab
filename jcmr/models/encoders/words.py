"""Words as states of a GRU that has read their sentence."""

from typing import Any

import flax.linen as nn

from jcmr.core.types import Array
from jcmr.models.encoders.gru import BiGRU, uniform_init
from jcmr.models.encoders.pie import dropout


class WordStates(nn.Module):
    """Word vectors, and a GRU over them whose directions are averaged (SCAN, IMRAM, VSE-infinity).

    With one direction it is the text tower of VSE++. Vectors start from U(-0.1, 0.1).
    """

    vocab_size: int
    word_dim: int
    features: int
    directions: tuple[str, ...] = ("forward", "backward")
    dropout_rate: float = 0.0
    """Of word vectors."""
    dtype: Any = None

    @nn.compact
    def __call__(self, text: Array, mask: Array, keys: Array | None = None) -> tuple[Array, Array]:
        """Reads the words.

        Args:
          text: word ids [b, t], 0 = pad.
          mask: [b, t], True = real.
          keys: [b], for dropout; None when evaluating.

        Returns:
          (states [b, t, features], 0 at masked words; ends [b, features], after the last word).
        """
        init = uniform_init(0.1)
        x = nn.Embed(self.vocab_size, self.word_dim, embedding_init=init, name="embed")(text)
        x = dropout(x, self.dropout_rate, keys, site=2)
        gru = BiGRU(self.features, self.dtype, self.directions, name="rnn")
        states, ends = gru(x, mask)
        halves = len(self.directions), self.features
        return (
            states.reshape(*states.shape[:-1], *halves).mean(axis=-2),
            ends.reshape(ends.shape[0], *halves).mean(axis=-2),
        )
