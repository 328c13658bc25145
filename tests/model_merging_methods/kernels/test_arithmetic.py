"""The formulas in torch, on the CPU and on a GPU, give the values of the compiled kernels."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_merging_methods.kernels.arithmetic import (
    COMPILED_METHODS,
    CompiledArithmetic,
    TensorNumbers,
    choose_device,
    open_arithmetic,
)
from model_merging_methods.kernels.counting_kernels import Brackets, Undecided
from model_merging_methods.kernels.kernel_plan import TIES_MERGING, StoredBlock, Sums
from model_merging_methods.kernels.magnitude_thresholds import BINS, EVERYWHERE, LARGEST_PATTERN, Bracket
from model_merging_methods.kernels.mask_kernels import random_keep_mask
from model_merging_methods.kernels.mask_weights import random_drop_mask
from model_merging_methods.kernels.stored_dtypes import BF16, F16, F32, F64
from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_request import mask_key
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup
from model_merging_methods.model_blocks import KEEP_ALL
from tests.model_merging_methods.merges import DARE, MERGES, PAIR, file_bytes, merge
from tests.model_merging_methods.small_models import save_model
from utils.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
on_both_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])

DTYPES = {F16: torch.float16, BF16: torch.bfloat16, F32: torch.float32, F64: torch.float64}
RATES = (0.0, 3.4 / 65536, 0.2, 1 / 3, 0.5, 0.9, 1.0)
# Small numbers that every dtype has, so that magnitudes tie and task vectors cancel; and the smallest there are.
STEPS = np.array([0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 1, 2**-24, -(2**-20), 2**-133, 1e-45, -1e-45])


@dataclass
class Case:
    """A block of K models, and how to merge it."""

    parameters: MergeParameters
    numbers: TensorNumbers
    values: np.ndarray  # float64 [K + 1, size]
    dtypes: list[int]
    output_dtype: int
    start: int
    keys: np.ndarray
    mask_numbers: np.ndarray

    @property
    def models(self) -> int:
        return len(self.values) - 1

    @property
    def size(self) -> int:
        return self.values.shape[1]

    def block(self, arithmetic) -> StoredBlock:
        room = arithmetic.room(len(self.values), self.size * 8)
        for row, values, dtype in zip(room, self.values, self.dtypes, strict=True):
            raw = torch.from_numpy(values).to(DTYPES[dtype]).view(torch.uint8).numpy()
            row[: len(raw)] = raw
        return StoredBlock(self.start, self.size, room, np.array(self.dtypes), self.keys, self.mask_numbers)

    def sums(self) -> Sums:
        return Sums.of(np.zeros(Sums.width(self.models)), self.models)

    def both(self, device: str):
        """The arithmetics to compare, each with the block in its own memory."""
        for arithmetic in (
            CompiledArithmetic(self.parameters, self.models),
            TorchArithmetic(self.parameters, self.models, device),
        ):
            yield arithmetic, self.block(arithmetic)


@st.composite
def cases(draw, methods: tuple[str, ...] = tuple(COMPILED_METHODS)) -> Case:
    method = draw(st.sampled_from(methods))
    models = 1 if method == "nearswap" else draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(1, 80) | st.integers(1, 2500))
    shape = (models + 1, size)
    are_steps = rng.random(shape) < draw(st.sampled_from([0, 0.5, 1]))
    values = np.where(are_steps, rng.choice(STEPS, shape), rng.normal(0, 0.1, shape))
    values[1:] += np.where(rng.random((models, size)) < 0.7, values[0], -0.0)
    mask = None
    if draw(st.booleans()):
        mask = mask_of("breadcrumbs", weight_format=draw(st.sampled_from(["delta_weight", "finetuned_weight"])))
    elif draw(st.booleans()):
        mask = mask_of(
            draw(st.sampled_from(["random", "magnitude"])),
            weight_mask_rate=draw(st.sampled_from(RATES) | st.tuples(*[st.sampled_from(RATES)] * models)),
            use_weight_rescale=draw(st.booleans()),
            weight_format=draw(st.sampled_from(["delta_weight", "finetuned_weight"])),
        )
    ratios = st.sampled_from([0.0, 0.2, 0.5, 1.0, -0.2]) | st.floats(-1, 2)
    ratios = draw(st.none() | st.tuples(*[ratios] * models))
    places = rng.integers(size, size=models)
    own = np.abs(values[1:] - values[0])[range(models), places].astype(np.float32)
    thresholds = draw(st.sampled_from([own, np.zeros(models, np.float32), np.full(models, 0.25, np.float32)]))
    start = draw(st.integers(0, 9) | st.integers(0, 2**40))
    options, statistics = {}, {}
    ratios = ratios if METHODS[method].takes_ratios else None
    if "scaling_coefficient" in METHODS[method].options:
        options["scaling_coefficient"] = draw(st.sampled_from([1.0, 0.3, 0.0, -1.5]))
    if "weight" in METHODS[method].options and ratios is None:
        options["weight"] = draw(st.tuples(*[st.sampled_from([0.25, 1.0, 0.3])] * models))
        options["normalize"] = draw(st.booleans())
    elif method == "linear":
        options["normalize"] = False
    if COMPILED_METHODS[method] == TIES_MERGING:
        statistics = {"trim_thresholds": thresholds.tolist(), "majority_sign": draw(st.sampled_from([-1, 0, 1]))}
    if method == "ties_per_tensor":
        lasts = [start + draw(st.integers(-1, size)) for _ in range(models)]
        statistics = {"kept": list(zip(thresholds.tolist(), lasts, strict=True))}
        options["elect_by"] = draw(st.sampled_from(["sum", "count"]))
    if method == "localize_and_stitch":
        statistics = {"largest_threshold": thresholds.tolist()}
    if method == "consensus_ta":
        options |= {"k": draw(st.integers(0, 3)), "mask_lambda": draw(st.sampled_from([0.2, 0.0, 1.0]))}
    if method in ("ram", "ramplus_tl"):
        options["epsilon"] = draw(st.sampled_from([1e-5, 0.0, 0.25]))
    if method == "ramplus_tl":
        counts = st.sampled_from([0, 1, 7, size])
        statistics = {"change_counts": [draw(st.tuples(counts, counts)) for _ in range(models)]}
    if method == "nearswap":
        options["t"] = draw(st.sampled_from([0.001, 0.0, 0.25, 10.0]))
    return Case(
        parameters=parameters_of(method, mask=mask, mixup=Mixup(ratios) if ratios else None, **options),
        numbers=TensorNumbers(ratios=ratios, statistics=statistics),
        values=values,
        dtypes=[draw(st.sampled_from(list(DTYPES))) for _ in range(models + 1)],
        output_dtype=draw(st.sampled_from(list(DTYPES))),
        start=start,
        keys=rng.integers(0, 2**64, models, np.uint64),
        mask_numbers=np.stack(
            [
                np.where(rng.random(models) < 0.8, thresholds, np.float32(-1)),
                start + rng.integers(-1, size, models),
                np.where(rng.random(models) < 0.5, thresholds * 2, np.inf),
                start + rng.integers(-1, size, models),
                rng.choice([1.0, 0.7], models),
            ],
            axis=1,
        ),
    )


def assert_same_sums(found: Sums, expected: Sums) -> None:
    """Equal counts; sums of products equal within float32's precision."""
    np.testing.assert_allclose(found.whole, expected.whole, rtol=1e-5)
    squares = expected.models[:, 0]
    np.testing.assert_allclose(found.models[:, 0], squares, rtol=1e-5, atol=1e-38)
    np.testing.assert_array_equal(found.models[:, 1:], expected.models[:, 1:])
    np.testing.assert_array_equal(found.pairs[:, :, [1, 3]], expected.pairs[:, :, [1, 3]])
    scale = np.sqrt(np.outer(squares, squares)) + 1e-33
    assert (np.abs(found.pairs[:, :, 0] - expected.pairs[:, :, 0]) <= 1e-5 * scale).all()
    np.testing.assert_allclose(found.pairs[:, :, 2], expected.pairs[:, :, 2], rtol=1e-5, atol=1e-38)


def assert_same_values(found: np.ndarray, expected: np.ndarray, dtype: int, device: str) -> None:
    """The same bytes; a GPU may differ by one unit in the last place."""
    if device == "cpu":
        assert found.tobytes() == expected.tobytes()
        return
    whole = {F16: np.int16, BF16: np.int16, F32: np.int32, F64: np.int64}[dtype]
    found, expected = found.view(whole).astype(np.int64), expected.view(whole).astype(np.int64)
    assert np.abs(found - expected).max(initial=0) <= 1, "in units in the last place"


@on_both_devices
@settings(deadline=None, max_examples=300)
@given(case=cases())
def test_merged_blocks_and_sums_are_equal(device, case):
    results = []
    for arithmetic, block in case.both(device):
        output = np.empty(case.size * DTYPES[case.output_dtype].itemsize, np.uint8)
        sums = case.sums()
        code = arithmetic.merge(case.numbers, block, case.output_dtype, output, sums)
        results.append((code, output, sums))
    (expected_code, expected, expected_sums), (code, output, sums) = results
    assert code == expected_code
    if code == 0:
        assert_same_values(output, expected, case.output_dtype, device)
        assert_same_sums(sums, expected_sums)


@on_both_devices
@settings(deadline=None, max_examples=50)
@given(case=cases(), masked=st.booleans())
def test_comparisons_and_magnitudes_are_equal(device, case, masked):
    results = []
    for arithmetic, block in case.both(device):
        sums = case.sums()
        assert arithmetic.compare(block, sums) == 0
        results.append((sums, *arithmetic.magnitudes(block, masked)))
    (expected_sums, expected_code, expected), (sums, code, magnitudes) = results
    assert_same_sums(sums, expected_sums)
    assert code == expected_code == 0
    assert magnitudes.shape == expected.shape and magnitudes.dtype == expected.dtype
    assert_same_values(magnitudes, expected, F32, device)


patterns = st.integers(0, LARGEST_PATTERN) | st.sampled_from([0, *(np.float32([0.25, 0.5, 1]).view(np.int32).tolist())])


@st.composite
def brackets(draw) -> Bracket:
    low, high = sorted([draw(patterns), draw(patterns)])
    return draw(st.sampled_from([EVERYWHERE, Bracket(low, low), Bracket.between(low, min(high, low + BINS - 1))]))


def arrays_of(brackets: list[Bracket]) -> Brackets:
    return Brackets(*(np.array([getattr(b, of) for b in brackets], np.int32) for of in ("low", "high", "shift")))


def new_room(case: Case, shared: int) -> Undecided:
    most = case.models * case.size
    integers = (np.zeros(most, dtype) for dtype in (np.int16, np.int32, np.int8, np.int8))
    return Undecided(*integers, np.zeros((shared, case.models), np.float32))


@on_both_devices
@settings(deadline=None, max_examples=300)
@given(case=cases(), data=st.data(), masked=st.booleans(), room_for_shared=st.sampled_from([0, 3, 2500]))
def test_counts_against_brackets_are_equal(device, case, data, masked, room_for_shared):
    wanted = arrays_of([data.draw(brackets()) for _ in range(case.models)])
    results = []
    for arithmetic, block in case.both(device):
        code, counts = arithmetic.count(block, wanted, masked, new_room(case, room_for_shared))
        assert code == 0
        results.append(counts)
    expected, counts = results
    np.testing.assert_array_equal(counts.below_and_up_to, expected.below_and_up_to)
    assert (counts.signs, counts.found, counts.shared) == (expected.signs, expected.found, expected.shared)
    assert entries(counts) == entries(expected)
    assert counts.undecided.values.tobytes() == expected.undecided.values.tobytes()


def entries(counts) -> list[tuple]:
    """The undecided values, sorted."""
    return sorted(zip(*(column[: counts.found].tolist() for column in counts.undecided[:4]), strict=True))


@on_both_devices
@settings(deadline=None, max_examples=200)
@given(case=cases(), data=st.data(), masked=st.booleans())
def test_candidates_inside_brackets_are_equal(device, case, data, masked):
    models = np.array(data.draw(st.lists(st.integers(0, case.models - 1), min_size=1, max_size=5)))
    wanted = arrays_of([data.draw(brackets()) for _ in models])
    results = []
    for arithmetic, block in case.both(device):
        room = np.empty((len(models), case.size), np.int32)
        code, counts, bins = arithmetic.note_candidates(block, models, wanted, masked, room)
        assert code == 0
        results.append((counts.tolist(), [np.sort(own).tolist() for own in bins]))
    assert results[0] == results[1]


@on_both_devices
@settings(deadline=None, max_examples=100)
@given(case=cases(("ramplus_tl",)))
def test_changes_are_counted_alike(device, case):
    results = []
    for arithmetic, block in case.both(device):
        counts = np.zeros((case.models, 2))
        results.append((arithmetic.count_changes(block, counts), counts.tolist()))
    assert results[0] == results[1]


def plain_case(method: str, values: np.ndarray, **options: float) -> Case:
    """All in float32, nothing masked or trimmed."""
    models = len(values) - 1
    statistics = {"trim_thresholds": [0.0] * models, "majority_sign": 0}
    if method == "ties_per_tensor":
        statistics = {"kept": [[-1.0, -1]] * models}
    if method == "localize_and_stitch":
        statistics = {"largest_threshold": [0.0] * models}
    if method == "nearswap":
        options["t"] = 0.5
    if method == "ramplus_tl":
        statistics = {"change_counts": [[0, 0]] * models}
    return Case(
        parameters=parameters_of(method, **options),
        numbers=TensorNumbers(statistics=statistics),
        values=values,
        dtypes=[F32] * (models + 1),
        output_dtype=F32,
        start=0,
        keys=np.zeros(models, np.uint64),
        mask_numbers=np.array([KEEP_ALL] * models),
    )


@on_both_devices
@pytest.mark.parametrize("method", COMPILED_METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", [0, 1, 2])
def test_the_model_with_a_value_that_is_not_finite_is_reported(device, method, value, model):
    values = np.ones((3, 3000))
    values[model, 2000] = value
    case = plain_case(method, values)
    results = []
    for arithmetic, block in case.both(device):
        output, room = np.empty(4 * case.size, np.uint8), new_room(case, 0)
        with np.errstate(invalid="ignore"):
            merged = arithmetic.merge(case.numbers, block, F32, output, case.sums())
        compared = arithmetic.compare(block, case.sums())
        magnitude, _ = arithmetic.magnitudes(block, True)
        counted, _ = arithmetic.count(block, arrays_of([EVERYWHERE] * 2), True, room)
        results.append((merged, compared, magnitude, counted))
    assert results[0] == results[1]
    takes_part = model > 0 or METHODS[method].reads_base
    assert results[0][:3] == (1 << model if takes_part else 0,) * 3


@on_both_devices
@pytest.mark.parametrize(
    ("dtype", "value", "scaling_coefficient", "code"),
    [
        *((F16, 65520.0, 1.0, -1), (F16, 65520.0, 0.99, 0), (BF16, 3.4e38, 1.0, -1), (BF16, 3.4e38, 0.99, 0)),
        *((F32, 3e38, 2.0, -1), (F32, 3e38, 1e300, -1)),
    ],
)
def test_merged_values_that_overflow_are_reported(device, dtype, value, scaling_coefficient, code):
    values = np.zeros((3, 3000))
    values[1, 2000] = value
    case = plain_case("task_arithmetic", values, scaling_coefficient=scaling_coefficient)
    for arithmetic, block in case.both(device):
        output = np.empty(case.size * DTYPES[dtype].itemsize, np.uint8)
        assert arithmetic.merge(case.numbers, block, dtype, output, case.sums()) == code


@on_both_devices
@pytest.mark.parametrize("rate", RATES)
def test_random_masks_are_equal(device, rate):
    for name, start in [("a", 0), ("b", 3), ("c", 2**40 + 1)]:
        key, n = mask_key(0, "math", name), 300_000
        keep = np.empty(n, np.float32)
        random_keep_mask(np.array([key]).view(np.uint64)[0], start, rate, keep)
        dropped = random_drop_mask(key, start, start + n, rate, device)
        np.testing.assert_array_equal(dropped.cpu().numpy(), keep == 0)


@on_both_devices
def test_parallel_merges_do_not_interfere(device):
    rng = np.random.default_rng(0)
    parameters = parameters_of("ties_merging", mask=mask_of(weight_mask_rate=0.5, use_weight_rescale=True))
    some = [plain_case("ties_merging", rng.normal(0, 1, (4, int(n)))) for n in rng.integers(1, 60_000, 40)]
    arithmetic = TorchArithmetic(parameters, 3, device)

    def merge(case: Case) -> bytes:
        output = np.empty(case.size * 4, np.uint8)
        block = case.block(arithmetic)
        for _ in range(5):
            assert arithmetic.merge(case.numbers, block, F32, output, case.sums()) == 0
        return output.tobytes()

    one_by_one = [merge(case) for case in some]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(merge, some)) == one_by_one


def test_torch_keeps_its_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        case = plain_case("average_merging", np.ones((3, 10)))
        arithmetic = TorchArithmetic(case.parameters, 2, "cpu")
        assert arithmetic.compare(case.block(arithmetic), case.sums()) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@needs_gpu
def test_blocks_for_a_gpu_are_in_page_locked_memory():
    room = TorchArithmetic(parameters_of("average_merging"), 2, "cuda").room(3, 1000)
    assert torch.from_numpy(room).is_pinned()


PAIRS = {
    "average": MERGES["average"],
    "task arithmetic M3": parameters_of("task_arithmetic", mixup=Mixup((0.3, 0.7)), scaling_coefficient=0.7),
    "TIES": MERGES["TIES"],
    "DARE TIES M3": parameters_of("ties_merging", mask=DARE, mixup=Mixup((0.3, 0.7))),
    "magnitude mask TIES": MERGES["magnitude mask TIES"],
}
merges = pytest.mark.parametrize("parameters", PAIRS.values(), ids=PAIRS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    base = save_model(root / "base", seed=0, dtype=torch.float16)
    save_model(root / "instruct", 1, base=base, dtype=torch.float16, added_tokens=("[PAD]",))
    save_model(root / "math", 2, base=base, dtype=torch.float16)
    return root


@merges
def test_a_method_without_a_kernel_uses_its_formula(folders, tmp_path, monkeypatch, parameters):
    work = {"threads": 2, "block_size": 333, "allow_unrelated": True}
    merge(folders, tmp_path / "kernels", parameters, PAIR, **work)
    monkeypatch.delitem(COMPILED_METHODS, parameters.method)
    merge(folders, tmp_path / "formulas", parameters, PAIR, **work)
    assert file_bytes(tmp_path / "formulas") == file_bytes(tmp_path / "kernels")


@needs_gpu
@pytest.mark.parametrize("device", ["cuda", "auto"])
@merges
def test_a_gpu_merges_to_the_same_values(folders, tmp_path, parameters, device):
    merge(folders, tmp_path / "gpu", parameters, PAIR, device=device, threads=4, block_size=333)
    merge(folders, tmp_path / "cpu", parameters, PAIR)
    found, expected = (
        np.frombuffer((tmp_path / name / "model.safetensors").read_bytes(), np.uint8) for name in ("gpu", "cpu")
    )
    header = 8 + int(expected[:8].view(np.uint64)[0])
    assert found[:header].tobytes() == expected[:header].tobytes()
    assert_same_values(found[header:], expected[header:], F16, "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU here")
def test_a_missing_gpu_is_an_error_in_one_line(folders, tmp_path):
    with pytest.raises(UserError, match=r"^--device cuda: torch finds no GPU here; use --device cpu$"):
        merge(folders, tmp_path / "merged", device="cuda")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(open_arithmetic(choose_device("auto"), MERGES["average"], 2), CompiledArithmetic)
