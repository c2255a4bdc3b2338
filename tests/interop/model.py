"""Recurrent models for torch as people write them. Nothing here knows of rnnfast."""
# mypy: allow-subclassing-any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PAD, START = 0, 1


class Classifier(nn.Module):
    """Tells the class of a text from the last states of a bidirectional LSTM, one sequence to one answer."""

    def __init__(self, vocabulary: int, classes: int, embed: int = 12, hidden: int = 20) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embed)
        self.lstm = nn.LSTM(embed, hidden, num_layers=2, batch_first=True, dropout=0.3, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.classes = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        self.lstm.flatten_parameters()
        _, (h, _) = self.lstm(self.embedding(tokens))
        return self.classes(self.dropout(torch.cat([h[-2], h[-1]], dim=-1)))


class Attention(nn.Module):
    """A mean of what was read, weighted by its likeness to a query."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden, hidden, bias=False)

    def forward(self, query: Tensor, read: Tensor, padded: Tensor) -> Tensor:
        scores = torch.einsum("tbh,bh->tb", self.project(read), query)
        weights = scores.masked_fill(padded, -torch.inf).softmax(dim=0)
        return torch.einsum("tb,tbh->bh", weights, read)


class Translator(nn.Module):
    """Reads one sequence and writes another: a GRU as the encoder, two GRU cells with attention as the decoder."""

    def __init__(self, vocabulary: int, embed: int = 10, hidden: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embed, padding_idx=PAD)
        self.encoder = nn.GRU(embed, hidden, num_layers=2)
        self.attention = Attention(hidden)
        self.decoder = nn.ModuleList([nn.GRUCell(embed + hidden, hidden), nn.GRUCell(hidden, hidden)])
        self.readout = nn.Linear(2 * hidden, vocabulary)

    def forward(self, source: Tensor, target: Tensor | None = None, steps: int = 10) -> Tensor:
        """Return logits; with a target as the decoder's inputs, else from what it has written itself."""
        read, h = self.encoder(self.embedding(source))
        state = list(h)
        token = torch.full_like(source[0], START)
        context = torch.zeros_like(read[0])
        logits = []
        for step in range(steps if target is None else len(target)):
            x = torch.cat([self.embedding(token), context], dim=-1)
            for k, cell in enumerate(self.decoder):
                x = state[k] = cell(x, state[k])
            context = self.attention(x, read, source == PAD)
            logits.append(self.readout(torch.cat([x, context], dim=-1)))
            token = logits[-1].argmax(dim=-1) if target is None else target[step]
        return torch.stack(logits)


class Tagger(nn.Module):
    """Gives each word of sentences of different lengths a tag."""

    def __init__(self, vocabulary: int, tags: int, embed: int = 12, hidden: int = 14) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embed, padding_idx=PAD)
        self.rnn = nn.Sequential(nn.LSTM(embed, hidden, bidirectional=True, bias=False))
        self.readout = nn.Sequential(nn.LayerNorm(2 * hidden), nn.Linear(2 * hidden, tags))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn[0](packed)[0], total_length=len(tokens))
        return self.readout(y)

    @staticmethod
    def loss(logits: Tensor, tags: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=PAD, reduction="sum") / tags.shape[1]


class Forecaster(nn.Module):
    """Predicts the next values of a series: an Elman network with a learned first state, then its own predictions."""

    def __init__(self, variables: int, hidden: int = 24, nonlinearity: str = "tanh") -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.zeros(1, 1, hidden))
        self.rnn = nn.RNN(variables, hidden, nonlinearity=nonlinearity)
        self.readout = nn.Linear(hidden, variables)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        y, h = self.rnn(x, self.h0.expand(-1, x.shape[1], -1).contiguous())
        predicted = [self.readout(y[-1:])]
        while len(predicted) < steps:
            y, h = self.rnn(predicted[-1], h)
            predicted.append(self.readout(y))
        return torch.cat(predicted)


class Counter(nn.Module):
    """Carries a state through a series, step by step, and resets it where an episode ends."""

    def __init__(self, variables: int, hidden: int = 11) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({"slow": nn.LSTMCell(variables, hidden), "fast": nn.RNNCell(hidden, hidden)})
        self.value = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], self.cells["slow"].hidden_size)
        fast, values = None, []
        for x_t, end in zip(x, ends, strict=True):
            h, c = self.cells["slow"](x_t, (h, c))
            fast = self.cells["fast"](h, fast)
            values.append(self.value(fast))
            h, c, fast = (s * ~end[:, None] for s in (h, c, fast))
        return torch.stack(values)
