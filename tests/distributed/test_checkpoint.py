"""A checkpoint fits any number of learners and any ZeRO stage, and training goes on as if uninterrupted."""

import json
from pathlib import Path

import pytest
import torch

from algorithms import PPO, SRFT, T1, ReLIFTBuffered, TwoStage
from srft_ray.config.load import make_config
from srft_ray.run.preflight import open_store
from srft_ray.train.checkpoint import CheckpointStore
from tests.distributed import low_rank
from tests.distributed.harness import Case, difference, load, make_critic, make_groups, padded_to, spawn

STEPS, STOP = 9, 4


def config_for(folder):
    return make_config(
        {"model": {"path": "x"}, "data": {"path": "x"}, "run": {"dir": str(folder), "name": "run"}}
    )


def train(rank, world, model_path, folder, case, first, last, stop, whole=True):
    """Losses of steps first … last - 1 and the parameters after them.

    It loads at `first` if that is not 0, and saves after `stop`, or before a step whose rollouts are refused.
    `whole`: everything saved is to be loaded.
    """
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.learner import Learner
    from srft_ray.train.parity import ParityError
    from srft_ray.train.reference import ReferenceModel
    from srft_ray.train.saving import Saver
    from tests.conftest import make_tokenizer

    model, frozen = (each.to(case.dtype) for each in load(model_path))
    adapter = low_rank.with_adapter(model, case.learner().lora) if case.lora else None
    engine = DeepSpeedEngine(model, case.learner(), case.dtype, adapter)
    known = None
    if case.algorithm.uses_reference:
        known = ReferenceModel(frozen, case.learner(), case.dtype, engine.device)
    critic = make_critic(frozen, case, engine) if case.algorithm.uses_critic else None
    learner = Learner(engine, case.learner(), parity_threshold=1e9, reference=known, critic=critic)
    trainer, files = config_for(folder).trainer, (learner.buffer.content, engine.tensors.adapter_files)
    saver = Saver(open_store(config_for(folder)), trainer, engine, model, make_tokenizer(), files)
    if first:
        saver.load(first)
        learner.buffer.load(saver.store, first)
        saved = saver.store.tensors(first)
        assert not whole or all(torch.equal(saved[name], value.flatten()) for name, value in engine.state())
    losses = []
    for step in range(first, last):
        stage = case.stage(step)
        try:
            with padded_to(case.length):
                metrics = learner.step(make_groups(stage, step)[rank::world], step, stage, 1.0)
        except ParityError:
            assert saver.save(step, final=True, about={"policy_version": step})
            break
        losses.append(metrics["loss"])
        if step + 1 == stop:
            assert saver.save(stop, final=False, about={"policy_version": stop})
    return losses, {name: value.detach().clone() for name, value in engine.weights()}


def case(zero, offload=False, dtype=torch.float32):
    settings = {"micro_batch_tokens": 60, "steps": STEPS, "lr": 0.003}
    length = 48 if dtype == torch.bfloat16 else None
    return Case(SRFT(), zero_stage=zero, offload=offload, dtype=dtype, length=length, **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model):
    """An uninterrupted run of two learners under ZeRO 2 that left a checkpoint half-way."""
    folder = tmp_path_factory.mktemp("saved")
    losses, weights = spawn(2, train, tiny_model, folder, case(2), 0, STEPS, STOP)
    return folder, losses, weights


FULL = [
    pytest.param(*setting, marks=pytest.mark.full) for setting in ((1, 3, True), (3, 1, True), (2, 0, False))
]


@pytest.mark.parametrize(("world", "zero", "offload"), [(1, 0, False), (4, 3, False), (2, 2, False), *FULL])
def test_other_learners_and_zero_stages_go_on(saved, tiny_model, world, zero, offload):
    folder, losses, weights = saved
    continued, after = spawn(world, train, tiny_model, folder, case(zero, offload), STOP, STEPS, None)
    worst = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(continued, losses[STOP:], strict=True))
    print(
        f"2 learners, ZeRO 2 -> {world} learners, ZeRO {zero}, offload {offload}: losses differ by at most "
        f"{worst:.1e}, parameters by {difference(after, {k: v.double() for k, v in weights.items()}):.1e}"
    )
    assert worst <= 1e-5
    assert difference(after, {k: v.double() for k, v in weights.items()}) <= 1e-5
    if (world, zero) == (2, 2):
        assert continued == losses[STOP:] and all(torch.equal(after[name], weights[name]) for name in weights)


def anchored(zero):
    """The reference moves before every step, also before the one that follows the checkpoint."""
    algorithm = T1(anchor_rate=0.3, kl_coefficient=1.0, kl_estimator="k2")
    return Case(algorithm, zero_stage=zero, micro_batch_tokens=60, steps=STEPS, lr=0.003)


@pytest.mark.full
def test_a_reference_that_moves_goes_on(tmp_path, tiny_model):
    losses, weights = spawn(2, train, tiny_model, tmp_path, anchored(3), 0, STEPS, STOP)
    for world, zero in ((1, 0), (2, 3)):
        continued, after = spawn(world, train, tiny_model, tmp_path, anchored(zero), STOP, STEPS, None)
        worst = max(abs(a - b) for a, b in zip(continued, losses[STOP:], strict=True))
        print(f"moved reference, 2 learners, ZeRO 3 -> {world}, ZeRO {zero}: losses within {worst:.1e}")
        assert worst <= (1e-5 if world == 1 else 0.0)
        assert difference(after, {k: v.double() for k, v in weights.items()}) <= 1e-5


def train_until_refused(*args):
    """As `train`, but the rollouts of step STOP come from another policy."""
    from srft_ray.train import learner
    from srft_ray.train.parity import ParityError

    def refuse(sums, largest, step, threshold):
        if step == STOP:
            raise ParityError("rollouts of another policy")
        return {}

    learner.check_parity = refuse
    return train(*args)


def test_a_reference_moves_once_before_a_step_that_is_refused_and_repeated(tmp_path, tiny_model):
    losses, weights = spawn(2, train, tiny_model, tmp_path / "whole", anchored(2), 0, STEPS, None)
    before, _ = spawn(2, train_until_refused, tiny_model, tmp_path, anchored(2), 0, STEPS, None)
    continued, after = spawn(2, train, tiny_model, tmp_path, anchored(2), STOP, STEPS, None)
    assert before + continued == losses
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def buffering(zero):
    """The checkpoint falls between two updates on buffered groups, while some of them wait."""
    algorithm = ReLIFTBuffered(buffer_size=3, sft_entropy=0.1)
    return Case(algorithm, zero_stage=zero, micro_batch_tokens=60, steps=STEPS, lr=0.003)


@pytest.mark.full
@pytest.mark.parametrize(("zero", "others"), [(2, [(2, 2), (1, 0)]), (3, [(2, 3), (1, 1)])])
def test_buffered_groups_and_their_optimizer_go_on(tmp_path, tiny_model, zero, others):
    # Its loss does not depend on the policy, whose ratio to itself is 1: parameters are compared.
    _, weights = spawn(2, train, tiny_model, tmp_path, buffering(zero), 0, STEPS, STOP)
    expected = {name: value.double() for name, value in weights.items()}
    folder = tmp_path / "run/checkpoints" / f"step-{STOP}"
    assert 0 < len(json.loads((folder / "buffer.json").read_text())) < 3
    for world, stage in others:
        _, after = spawn(world, train, tiny_model, tmp_path, buffering(stage), STOP, STEPS, None)
        worst = difference(after, expected)
        print(f"buffered groups, 2 learners, ZeRO {zero} -> {world}, ZeRO {stage}: within {worst:.1e}")
        assert worst <= (1e-5 if world == 1 else 0.0)
    # The comparison can fail: without the groups that waited.
    (folder / "buffer.json").write_text("[]")
    _, after = spawn(1, train, tiny_model, tmp_path, buffering(0), STOP, STEPS, None)
    assert difference(after, expected) > 1e-4


def criticized(zero):
    algorithm = PPO(discount=0.9, gae_lambda=0.8)
    return Case(algorithm, zero_stage=zero, micro_batch_tokens=60, steps=STEPS, lr=0.003)


@pytest.mark.parametrize(
    ("zero", "others"), [(2, [(2, 2), (1, 0)]), pytest.param(3, [(2, 3), (1, 1)], marks=pytest.mark.full)]
)
def test_a_critic_and_its_optimizer_go_on(tmp_path, tiny_model, zero, others):
    # The policy's parameters depend on the critic's in every step.
    _, weights = spawn(2, train, tiny_model, tmp_path, criticized(zero), 0, STEPS, STOP)
    expected = {name: value.double() for name, value in weights.items()}
    for world, stage in others:
        _, after = spawn(world, train, tiny_model, tmp_path, criticized(stage), STOP, STEPS, None)
        worst = difference(after, expected)
        print(f"a critic, 2 learners, ZeRO {zero} -> {world}, ZeRO {stage}: within {worst:.1e}")
        assert worst <= (1e-5 if world == 1 else 0.0)


def train_a_late_critic(rank, world, model_path, folder, zero):
    """Weights of three runs whose critic makes its first update after step STOP: one that saves nothing, one
    that saves at STOP, and one that goes on from there."""
    algorithm = TwoStage(second=PPO(discount=0.9, gae_lambda=0.8), first_steps=STOP + 1)
    late = Case(algorithm, zero_stage=zero, micro_batch_tokens=60, steps=STEPS, lr=0.003)
    runs = ((0, None), (0, STOP), (STOP, None))
    return [train(rank, world, model_path, folder, late, first, STEPS, stop)[1] for first, stop in runs]


@pytest.mark.parametrize(("world", "zero"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_a_critic_without_updates_is_saved(tmp_path, tiny_model, world, zero):
    undisturbed, saving, after = spawn(world, train_a_late_critic, tiny_model, tmp_path, zero)
    assert all(torch.equal(saving[name], value) for name, value in undisturbed.items())
    assert all(torch.equal(after[name], value) for name, value in undisturbed.items())


def ask_before_training(rank, world, model_path, settings):
    """For each setting the state after two steps, of learners that were asked for it before and of others."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.learner import Learner

    found = []
    for setting in settings:
        for asked in (True, False):
            model = load(model_path)[0].to(setting.dtype)
            engine = DeepSpeedEngine(model, setting.learner(), setting.dtype)
            before = dict(engine.state()) if asked else {}
            assert not any(value.any() for name, value in before.items() if not name.endswith("|weight"))
            learner = Learner(engine, setting.learner(), parity_threshold=1e9)
            for step in range(2):
                stage = setting.stage(step)
                with padded_to(setting.length):
                    learner.step(make_groups(stage, step)[rank::world], step, stage, 1.0)
            found.append((engine.updates, dict(engine.state())))
            engine.close()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_before_the_first_update_changes_nothing(tiny_model, dtype):
    settings = [
        case(zero, offload, dtype) for zero, offload in ((0, False), (1, True), (2, False), (3, True))
    ]
    found = spawn(2, ask_before_training, tiny_model, settings)
    for (updates, asked), (expected_updates, expected) in zip(found[::2], found[1::2], strict=True):
        assert updates == expected_updates == 2 and asked.keys() == expected.keys()
        assert all(torch.equal(asked[name], value) for name, value in expected.items())


def test_it_is_the_critic_that_matters(tmp_path, tiny_model):
    """The comparison above can fail: with a critic that begins anew the parameters part."""
    _, weights = spawn(1, train, tiny_model, tmp_path, criticized(0), 0, STEPS, STOP)
    _, after = spawn(1, train_with_a_new_critic, tiny_model, tmp_path, criticized(0), STOP, STEPS, None)
    assert difference(after, {name: value.double() for name, value in weights.items()}) > 1e-4


def train_with_a_new_critic(*args):
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    load_all = DeepSpeedEngine.load

    def load_without_critic(self, saved, updates):
        critic, self.critic = self.critic, None
        load_all(self, saved, updates)
        self.critic = critic

    DeepSpeedEngine.load = load_without_critic
    return train(*args, whole=False)


@pytest.fixture(scope="module")
def saved_bfloat16(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("saved_bfloat16")
    losses, _ = spawn(2, train, tiny_model, folder, case(2, dtype=torch.bfloat16), 0, STEPS, STOP)
    return folder, losses


@pytest.mark.parametrize(
    ("world", "zero"),
    [(2, 2), (1, 0), pytest.param(4, 3, marks=pytest.mark.full), pytest.param(2, 1, marks=pytest.mark.full)],
)
def test_bfloat16_goes_on_with_other_learners_and_zero_stages(saved_bfloat16, tiny_model, world, zero):
    """The state is taken up bit for bit (see `train`).

    Then float32 weights that differ by rounding become bfloat16 weights that now and then differ by one bit,
    so that losses agree to bfloat16 rounding only, unless everything is the same.
    """
    folder, losses = saved_bfloat16
    settings = case(zero, dtype=torch.bfloat16)
    continued, _ = spawn(world, train, tiny_model, folder, settings, STOP, STEPS, None)
    worst = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(continued, losses[STOP:], strict=True))
    print(f"bfloat16 -> {world} learners, ZeRO {zero}: losses differ by at most {worst:.1e}")
    assert worst <= (0 if (world, zero) == (2, 2) else 2**-8)


@pytest.mark.parametrize(
    "zero", [0, 2, pytest.param(1, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)]
)
def test_one_learner_goes_on_bit_for_bit(tmp_path, tiny_model, zero):
    losses, weights = spawn(1, train, tiny_model, tmp_path, case(zero), 0, STEPS, STOP)
    continued, after = spawn(1, train, tiny_model, tmp_path, case(zero), STOP, STEPS, None)
    assert continued == losses[STOP:] and all(torch.equal(after[name], weights[name]) for name in weights)


def test_it_is_the_moments_that_matter(saved, tiny_model):
    """The comparison above can fail: without Adam's moments the losses part."""
    folder, losses, _ = saved
    continued, _ = spawn(1, train_without_moments, tiny_model, folder, case(0), STOP, STEPS, None)
    assert max(abs(a - b) for a, b in zip(continued, losses[STOP:], strict=True)) > 1e-4


def train_without_moments(*args):
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    load_all = DeepSpeedEngine.load

    def load_and_forget(self, saved, updates):
        load_all(self, saved, updates)
        self.reset_optimizer()

    DeepSpeedEngine.load = load_and_forget
    return train(*args, whole=False)


def train_where_nothing_can_be_removed(rank, world, model_path, folder, steps):
    """Checkpoints of which only one is to be kept, on storage that lets nothing be deleted."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.saving import Saver
    from tests.conftest import make_tokenizer

    model, _ = load(model_path)
    config = config_for(folder)
    config.trainer.keep_checkpoints = 1
    config.run_dir.mkdir(exist_ok=True)
    saver = Saver(
        open_store(config),
        config.trainer,
        DeepSpeedEngine(model, case(0).learner(), torch.float32),
        model,
        make_tokenizer(),
    )
    saver.engine._create_optimizer_state()
    assert saver.save(1, final=False, about={})
    discard = CheckpointStore.discard

    def refuse(store, step):
        if step == 1:
            raise OSError("Directory not empty")
        discard(store, step)

    CheckpointStore.discard = refuse
    saved = saver.save(2, final=True, about={})
    return saved, saver.store.steps()


def test_a_checkpoint_is_not_lost_because_an_old_one_cannot_be_removed(tmp_path, tiny_model):
    saved, steps = spawn(2, train_where_nothing_can_be_removed, tiny_model, tmp_path, 2)
    assert saved and steps == [1, 2]
    assert "could not be removed (Directory not empty)" in (tmp_path / "run/events.jsonl").read_text()


def test_a_model_that_does_not_fit_is_refused(saved, tmp_path, untied_model):
    folder, _, _ = saved
    with pytest.raises(Exception, match=r"the checkpoint has no lm_head.weight\|weight"):
        spawn(1, train, untied_model, folder, case(0), STOP, STEPS, None)


def train_in_pieces(*args):
    """As `train`, with files of 50 kB: the model does not fit into one."""
    from srft_ray.train import saving

    saving.PIECE_BYTES = 50_000
    return train(*args)


def test_a_large_model_is_written_in_pieces(tmp_path, tiny_model):
    _, weights = spawn(2, train_in_pieces, tiny_model, tmp_path, case(3), 0, 1, 1)
    hf = tmp_path / "run/checkpoints/step-1/hf"
    assert len(list(hf.glob("model-*.safetensors"))) > 2
    assert (hf / "tokenizer.json").is_file()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def save_the_start(rank, world, model_path, folder, zero, background):
    """Saves the model as it is, in pieces; each rank leaves the names of the files that it wrote."""
    from srft_ray.train import saving
    from srft_ray.train.background_saving import BackgroundSaver
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from tests.conftest import make_tokenizer

    saving.PIECE_BYTES = 50_000
    model, _ = load(model_path)
    engine = DeepSpeedEngine(model, case(zero).learner(), torch.float32)
    engine._create_optimizer_state()
    config = config_for(folder)
    saver = saving.Saver(open_store(config), config.trainer, engine, model, make_tokenizer())
    write, written = CheckpointStore.write, []

    def note(store, step, name, *parts):
        written.append(name)
        return write(store, step, name, *parts)

    CheckpointStore.write = note
    if background:
        saver = BackgroundSaver(saver, 60.0)
        saver.begin(1, {})
        assert saver.settle(wait=True) == 1
    else:
        assert saver.save(1, final=True, about={})
    (folder / f"rank-{rank}.json").write_text(json.dumps([name for name in written if "hf/model-" in name]))


@pytest.mark.parametrize(("world", "zero", "background"), [(3, 3, False), (2, 2, True)])
def test_each_rank_writes_an_equal_part_of_the_model(tmp_path, tiny_model, world, zero, background):
    """The files are bitwise those that one learner writes alone."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, setting in ((alone, (1, 0, False)), (together, (world, zero, background))):
        folder.mkdir()
        spawn(setting[0], save_the_start, tiny_model, folder, *setting[1:])
    expected, found = (
        {file.name: file.read_bytes() for file in (folder / "run/checkpoints/step-1/hf").iterdir()}
        for folder in (alone, together)
    )
    assert found == expected
    pieces = sorted(f"hf/{name}" for name in expected if name.endswith(".safetensors"))
    for rank in range(world):
        written = json.loads((together / f"rank-{rank}.json").read_text())
        assert written == pieces[rank::world] and len(pieces) > world


def test_hf_is_the_trained_model(saved, tiny_model):
    from transformers import AutoModelForCausalLM

    folder, _, _ = saved
    model = AutoModelForCausalLM.from_pretrained(
        Path(folder) / "run" / "checkpoints" / f"step-{STOP}" / "hf", dtype=torch.float32
    )
    reader = open_store(config_for(folder)).tensors(STOP)
    for name, parameter in model.named_parameters():
        assert torch.equal(reader[f"{name}|weight"].view_as(parameter), parameter)
