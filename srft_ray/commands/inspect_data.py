"""`srft-ray data`: what a data set holds, what would be dropped and why, and what the verifier says of its
demonstrations."""

from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from srft_ray.config.resolve import TokenLimits, resolve
from srft_ray.config.schema import Config
from srft_ray.data.prepare import prepare
from srft_ray.data.store import Counts, PreparedData
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import load_model_config
from srft_ray.rollout.judges import make_verifier_pool
from srft_ray.run.installation import check_installation
from srft_ray.verify import Item

AT_ONCE = 512


def describe(config: Config) -> str:
    """A report as text. Nothing is written to the run directory. UserError as `train` would."""
    resolved = resolve(config)
    config, fits = resolved.config, resolved.token_limits
    check_installation(config)
    load_model_config(config.model)
    with TemporaryDirectory() as folder:
        data = prepare(config.data, load_tokenizer(config.model), fits, Path(folder), config.run.seed)
        return "\n".join([*_lines(config, data.counts, fits), *_verdicts(config, data)])


def _lines(config: Config, counts: Counts, limits: TokenLimits) -> list[str]:
    prompt, demonstration = (
        counts.prompt_tokens / max(1, counts.kept),
        counts.demonstration_tokens / max(1, counts.demonstrations),
    )
    return [
        f"source            {config.data.path} ({counts.rows} rows)",
        f"kept              {counts.kept} rows with {counts.demonstrations} demonstrations",
        f"dropped           {counts.overlong_prompts} prompts above {limits.prompt} tokens, "
        f"{counts.overlong_demonstrations} demonstrations that end above {limits.sequence} tokens",
        f"without answer    {counts.without_answer} rows",
        f"prompt tokens     mean {prompt:.0f}, longest {counts.longest_prompt}",
        f"demonstration     mean {demonstration:.0f} tokens, longest with its prompt "
        f"{counts.longest_demonstration}",
    ]


def _verdicts(config: Config, data: PreparedData) -> list[str]:
    """The verifier's verdicts on all demonstrations of rows that have a reference answer."""
    verdicts, rejected = Counter[str](), list[str]()
    items = (
        Item(d["text"], row["reference"], row["metadata"])
        for row in data.rows()
        if row["reference"]
        for d in row["demonstrations"]
    )
    with closing(make_verifier_pool(config.verifier)) as pool:
        while batch := list(islice(items, AT_ONCE)):
            for item, verdict in zip(batch, pool.verify(batch), strict=True):
                verdicts[verdict.verdict] += 1
                if verdict.verdict != "match" and len(rejected) < 3:
                    rejected.append(
                        f"  {verdict.verdict}: reference {item.reference!r}, found {verdict.answer!r}, in "
                        f"…{item.response[-60:]!r}"
                    )
    total = verdicts.total()
    if not total:
        return ["verifier          no demonstration with a reference answer to judge"]
    others = "".join(
        f"; {count} {verdict}" for verdict, count in verdicts.most_common() if verdict != "match"
    )
    return [
        f"verifier          {config.verifier.path or config.verifier.name} accepts {verdicts['match']} of "
        f"{total} demonstrations ({100 * verdicts['match'] / total:.2f} %){others}",
        *rejected,
    ]
