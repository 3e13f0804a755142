"""PPO's critic in float64 on one page, written from the equations: one sequence at a time, no batches, no
engine."""

import copy

import torch


def head(size):
    """Weights (1, size) that are the same wherever they are asked for."""
    return 0.1 * torch.randn(1, size, generator=torch.Generator().manual_seed(1))


class Values(torch.nn.Module):
    """V of the states before the tokens of a response, by a copy of the model's decoder."""

    def __init__(self, model):
        super().__init__()
        self.decoder = copy.deepcopy(model).get_decoder()
        self.head = torch.nn.Linear(model.config.hidden_size, 1, bias=False).double()
        with torch.no_grad():
            self.head.weight.copy_(head(model.config.hidden_size))

    def forward(self, group, completion):
        ids = torch.tensor([[*group.prompt_ids, *completion.ids]])
        hidden = self.decoder(input_ids=ids).last_hidden_state[0]
        return self.head(hidden[len(group.prompt_ids) - 1 : -1])[:, 0]

    @torch.no_grad()
    def give_credit(self, ppo, groups):
        """Sets old values, returns and advantages of all completions of the step, in `measured`."""
        everything = [(g, c) for g in groups for c in g.trained]
        for group, c in everything:
            values, own = self(group, c), written(c)
            advantages = torch.zeros_like(values)
            credit = gae(values[own].tolist(), c.advantage, ppo.discount, ppo.gae_lambda)
            advantages[own] = torch.tensor(credit, dtype=values.dtype)
            c.measured = {"values": values, "advantages": advantages, "returns": advantages + values}
        every = torch.cat([c.measured["advantages"][written(c)] for _, c in everything])
        for _, c in everything:
            if ppo.standardize:
                standardized = (c.measured["advantages"] - every.mean()) / (every.std() + 1e-6)
                c.measured["advantages"] = standardized * written(c)

    def loss(self, ppo, groups):
        """The mean over all tokens of ½ max((V - R)², (V clipped - R)²)."""
        errors = []
        for group in groups:
            for c in group.trained:
                old, returns = c.measured["values"], c.measured["returns"]
                values = self(group, c)
                error = (values - returns) ** 2
                if ppo.value_clip is not None:
                    low, high = old - ppo.value_clip, old + ppo.value_clip
                    clipped = torch.minimum(torch.maximum(values, low), high)
                    error = torch.maximum(error, (clipped - returns) ** 2)
                errors.append(0.5 * error[written(c)])
        return torch.cat(errors).mean()


def written(completion):
    """True at the tokens that no environment wrote."""
    found = torch.ones(len(completion.ids), dtype=torch.bool)
    for first, end in completion.observed:
        found[first:end] = False
    return found


def gae(values, reward, discount, gae_lambda):
    """Σ_k (γλ)^k δ_{t+k} for each t, by its definition."""
    after = [*values[1:], 0.0]
    rewards = [0.0] * (len(values) - 1) + [reward]
    deltas = [r + discount * later - v for r, later, v in zip(rewards, after, values, strict=True)]
    return [
        sum((discount * gae_lambda) ** (k - t) * deltas[k] for k in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
