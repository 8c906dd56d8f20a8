"""Small made-up models in the format of ciderpress, and their formulas in plain NumPy."""

import base64
import dataclasses
import pickle

import numpy as np
from pyscf.dft import libxc
from scipy.interpolate import BSpline

BASELINES = {"GGA_X_PBE": "gga_x_pbe", "GGA_X_CHACHIYO": "gga_x_chachiyo"}
GAMMA_P = 0.243
SCALE_Z, CENTER_Z, GAMMA_Z = 2.0, 1.0, 0.8
SCALE_V, CENTER_V, GAMMA_V = 1.5, 0.4, 0.5
F8 = (
    "!!python/object/apply:numpy.dtype {args: [f8, false, true], "
    "state: !!python/tuple [3, <, null, null, null, -1, -1, 0]}"
)


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """Exchange with one spline of each order up to three, as many inputs as it needs."""

    level: str = "GGA"
    baseline: str = "GGA_X_CHACHIYO"
    nldf: bool = False
    seed: int = 5

    theta = (0.5, 0.01, 0.015)
    exponents = ((0.25, 0.005, 0.0078), (0.5, 0.01, 0.0156))
    constants = (0.7, 1.1)

    @property
    def num_semilocal(self) -> int:
        return 1 if self.level == "GGA" else 2

    @property
    def grids(self) -> list[tuple[float, float, int]]:
        grids = [(0, 1, 9), (-1.0, 1.0, 7)][: self.num_semilocal]
        return grids + [(-0.4, 1.1, 6)] * self.num_nonlocal

    @property
    def terms(self) -> list[tuple[int, ...]]:
        inputs = len(self.grids)
        terms = [(i,) for i in range(inputs)] + [(0, i) for i in range(1, inputs)]
        return terms + [(0, i, inputs - 1) for i in range(1, inputs - 1)]

    @property
    def num_nonlocal(self) -> int:
        return 2 * self.nldf

    @property
    def const(self) -> float:
        return -0.25

    def coefficients(self) -> tuple[np.ndarray, list[np.ndarray]]:
        random = np.random.default_rng(self.seed)
        shapes = [tuple(self.grids[i][2] + 2 for i in term) for term in self.terms]
        scales = 0.1 * random.uniform(0.5, 1.5, size=len(shapes))
        return scales, [random.normal(size=shape) for shape in shapes]

    # The file.

    def text(self) -> str:
        scales, coefficients = self.coefficients()
        mode = "np" if self.level == "GGA" else "npa"
        coeff_sets = "".join(f"\n    - {array(c)}" for c in coefficients)
        ind_sets = "".join(f"\n    - {indices(term)}" for term in self.terms)
        spline_grids = "".join(
            f"\n    - !!python/tuple [{', '.join(f'*grid{i}' for i in term)}]"
            if len(term) > 1
            else f"\n    - !!python/tuple [&grid{term[0]} {sequence(self.grids[term[0]])}]"
            for term in self.terms
        )
        normalizers = ["null"] * (1 + self.num_semilocal)
        nldf = EMPTY
        if self.nldf:
            normalizers += [f"{normalizer} {{const: {scalar(c)}}}" for c in self.constants]
            normalizers = [n.replace("\n", " ") for n in normalizers]
            own_level = "_sl_level: GGA, " if self.level == "GGA" else ""
            nldf = (
                f"!!python/object:ciderpress.dft.settings.NLDFSettingsVJ {{{own_level}"
                f"feat_params: {[list(a) for a in self.exponents]}, feat_specs: [se, se], "
                "l0_feat_specs: [], l1_feat_dots: [], l1_feat_specs: [], rho_mult: one, "
                f"theta_params: {list(self.theta)}}}"
            )
        return f"""\
!!python/object:ciderpress.dft.xc_evaluator.MappedXC
kernels:
- !!python/object:ciderpress.dft.xc_evaluator.MappedDFTKernel
  _add_basefunc: !!python/name:ciderpress.dft.baselines.{BASELINES[self.baseline]} ''
  _mul_basefunc: !!python/name:ciderpress.dft.baselines.lda_x ''
  feature_list: !!python/object:ciderpress.dft.transform_data.FeatureList
    feat_list:{"".join(f"{chr(10)}    - {m}" for m in self.maps())}
  fevals:
  - !!python/object:ciderpress.dft.xc_evaluator.SplineSetEvaluator
    coeff_sets:{coeff_sets}
    const: {self.const}
    ind_sets:{ind_sets}
    nterms: {len(self.terms)}
    scale: {array(scales)}
    spline_grids:{spline_grids}
  mode: SEP
libxc_baseline: null
{feature_settings(self.level, mode, normalizers, nldf=nldf)}"""

    def maps(self) -> list[str]:
        prefix = "!!python/object:ciderpress.dft.transform_data."
        maps = [f"{prefix}UMap {{_bounds: !!python/tuple [0, 1], gamma: {GAMMA_P}, i: 1}}"]
        if self.level == "MGGA":
            maps.append(
                f"{prefix}ZMap {{center: {CENTER_Z}, gamma: {GAMMA_Z}, i: 2, n: 1, "
                f"scale: {SCALE_Z}}}"
            )
        first = 1 + self.num_semilocal
        for i in range(first, first + self.num_nonlocal):
            maps.append(
                f"{prefix}VMap {{_bounds: !!python/tuple [-0.5, 0.5], center: {CENTER_V}, "
                f"gamma: {GAMMA_V}, i: {i}, scale: {SCALE_V}}}"
            )
        return maps

    # Its formulas.

    def inputs(self, p: np.ndarray, alpha: np.ndarray, features: np.ndarray) -> np.ndarray:
        rows = [GAMMA_P * p / (1 + GAMMA_P * p)]
        if self.level == "MGGA":
            rows.append(SCALE_Z / (1 + GAMMA_Z * alpha**2) - CENTER_Z)
        if self.nldf:
            scaled = GAMMA_V * np.array(self.constants)[:, None] * features
            rows += list(SCALE_V * scaled / (1 + scaled) - CENTER_V)
        return np.array(rows)

    def correction(self, p: np.ndarray, alpha: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The learned part g of the enhancement factor, from direct sums of B-splines."""
        x = self.inputs(p, alpha, features)
        total = np.full(p.shape, self.const)
        for scale, c, term in zip(*self.coefficients(), self.terms, strict=True):
            bases = [b_splines(x[i], *self.grids[i]) for i in term]
            axes = "abc"[: len(term)]
            total += scale * np.einsum(f"{axes},{','.join('g' + a for a in axes)}->g", c, *bases)
        return total

    def a(self, number: int, rho: np.ndarray, sigma: np.ndarray, tau: np.ndarray) -> np.ndarray:
        """The exponent of a feature (-1: of the source), in the form of the published code."""
        a0, by_gradient, by_tau = (self.theta, *self.exponents)[number + 1]
        fermi = 0.3 * (3 * np.pi**2) ** (2 / 3)
        factor = 1.2 * (6 * np.pi**2) ** (2 / 3) / np.pi * np.pi / 2 ** (2 / 3)
        a = np.pi / 2 ** (2 / 3) * a0 * rho ** (2 / 3)
        a += factor * by_gradient * 0.125 / fermi * sigma / rho**2
        if self.level == "MGGA":
            a += factor * by_tau * (tau / rho / fermi - rho ** (2 / 3))
        return a


@dataclasses.dataclass(frozen=True)
class PublishedXc:
    """Exchange and correlation by sums over a few control points, of p, tau and two NLDF."""

    seed: int = 6

    theta, exponents = PublishedModel.theta, PublishedModel.exponents
    constants = PublishedModel.constants
    gamma_n = 10.0

    def control_points(self, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Control points, weights and exponents of exchange (SEP) or correlation (NPOL)."""
        inputs = {"SEP": 4, "NPOL": 5}[mode]
        random = np.random.default_rng(self.seed + inputs)
        points = random.uniform(-0.5, 1, size=(7, inputs))
        return points, random.normal(size=7), random.uniform(0.5, 8, size=inputs)

    # The file.

    def text(self) -> str:
        exchange = self.kernel("SEP", "LDA_X", "GGA_X_PBE")
        correlation = self.kernel("NPOL", "GGA_C_PBE", "GGA_C_PBE")
        normalizers = ["null"] * 3
        normalizers += [f"{normalizer} {{const: {scalar(c)}}}" for c in self.constants]
        nldf = f"""!!python/object:ciderpress.dft.settings.NLDFSettingsVJ
    feat_params: {[list(a) for a in self.exponents]}
    feat_specs: [se, se]
    l0_feat_specs: []
    l1_feat_dots: []
    l1_feat_specs: []
    rho_mult: one
    theta_params: {list(self.theta)}"""
        return f"""\
!!python/object:ciderpress.dft.xc_evaluator2.MappedXC2
kernels:
{exchange}{correlation}libxc_baseline: null
{feature_settings("MGGA", "nst", normalizers, nldf=nldf)}vdw_eval_mode: null
vdw_fit_info: null
vdw_fit_term: null
"""

    def kernel(self, mode: str, factor: str, baseline: str) -> str:
        points, weights, exponents = self.control_points(mode)
        prefix = "!!python/object:ciderpress.dft.transform_data."
        maps = [
            f"{prefix}SLXMap {{gamma: {GAMMA_P}, i: 0, j: 1}}",
            f"{prefix}SLTMap {{i: 0, j: 2}}",
        ]
        if mode == "NPOL":
            maps.append(f"{prefix}SLNMap {{gamma: {self.gamma_n}, i: 0}}")
        for i in (3, 4):
            maps.append(
                f"{prefix}VMap {{_bounds: !!python/tuple [-0.5, 0.5], center: {CENTER_V}, "
                f"gamma: {GAMMA_V}, i: {i}, scale: {SCALE_V}}}"
            )
        return f"""\
- !!python/object:ciderpress.dft.xc_evaluator2.MappedDFTKernel2
  _add_basefunc: {baseline}
  _mul_basefunc: {factor}
  feature_list: !!python/object:ciderpress.dft.transform_data.FeatureList
    feat_list:{"".join(f"{chr(10)}    - {m}" for m in maps)}
  fevals:
  - !!python/object:ciderpress.dft.xc_evaluator.RBFEvaluator
    _X1ctrl: {array(points)}
    _alpha: {array(weights)}
    _exps: {array(exponents)}
    _indexes: {array(np.arange(len(maps), dtype=np.int32))}
    _nctrl: {len(points)}
    _nfeat: {len(maps)}
  mode: {mode}
  omega: 0.0
"""

    # Its formulas.

    def energy_density(
        self, rho: np.ndarray, grad_rho: np.ndarray, tau: np.ndarray, features: np.ndarray
    ) -> np.ndarray:
        """Of two spin densities, with the nonlocal features of the spin-scaled ones."""
        energies = [
            n * eps_x
            for n, grad, t, f in zip(rho, grad_rho, tau, features, strict=True)
            for eps_x in [self.exchange(2 * n, 4 * np.sum(grad**2, axis=0), 2 * t, f)]
        ]
        sigma = np.mean(4 * np.sum(grad_rho**2, axis=1), axis=0)
        total = rho.sum(axis=0)
        g = self.learned("NPOL", total, sigma, tau.sum(axis=0), features.mean(axis=0))
        ingredients = np.concatenate([rho[:, None], grad_rho], axis=1)
        eps_c = libxc.eval_xc("GGA_C_PBE", ingredients, spin=1, deriv=0)[0]
        return sum(energies) + total * eps_c * (1 + g)

    def exchange(
        self, rho: np.ndarray, sigma: np.ndarray, tau: np.ndarray, features: np.ndarray
    ) -> np.ndarray:
        """Exchange energy per electron of a closed shell."""
        ingredients = np.array([rho, np.sqrt(sigma), 0 * rho, 0 * rho])
        lda = libxc.eval_xc("LDA_X", rho, deriv=0)[0]
        pbe = libxc.eval_xc("GGA_X_PBE", ingredients, deriv=0)[0]
        return pbe + lda * self.learned("SEP", rho, sigma, tau, features)

    def learned(
        self,
        mode: str,
        rho: np.ndarray,
        sigma: np.ndarray,
        tau: np.ndarray,
        features: np.ndarray,
    ) -> np.ndarray:
        """The learned part g."""
        p = GAMMA_P * sigma / (4 * (3 * np.pi**2) ** (2 / 3) * rho ** (8 / 3))
        tau_0 = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3)
        rows = [p / (1 + p), (tau - tau_0) / (tau + tau_0)]
        if mode == "NPOL":
            rows.append((1 + 3 * self.gamma_n / (4 * np.pi) * rho) ** (-1 / 3))
        scaled = GAMMA_V * np.array(self.constants)[:, None] * features
        x = np.array([*rows, *(SCALE_V * scaled / (1 + scaled) - CENTER_V)])
        points, weights, exponents = self.control_points(mode)
        squares = (x[:, None] - points.T[:, :, None]) ** 2
        return weights @ np.exp(-np.einsum("i,img->mg", exponents, squares))


@dataclasses.dataclass(frozen=True)
class PublishedSdmx:
    """Exchange by a neural network, of p, alpha and features of the smoothed density matrix."""

    seed: int = 7

    level, baseline = "MGGA", "GGA_X_PBE"
    powers, counts = (1, 0), (1, 1, 2, 2)
    constants = (-1.1, -0.6, -0.7, -1.9, -0.8, -0.9)
    """Of the features in their order: 0, 0d, twice 1 and twice 1d, of the first powers."""
    read = (3, 4, 6, 8, 7)
    """The positions that the maps read, which follow those of the density, p and alpha."""
    hidden = 4

    def arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Weights and biases of each layer."""
        random = np.random.default_rng(self.seed)
        hidden, inputs = self.hidden, 2 + len(self.read)
        shapes = {"l0": (hidden, inputs), "lls.0": (hidden, hidden), "l2s.0": (hidden, inputs)}
        shapes |= {"lls.1": (hidden, hidden), "l2s.1": (hidden, inputs), "last": (1, hidden)}
        return {
            name: (0.4 * random.normal(size=shape), 0.4 * random.normal(size=shape[0]))
            for name, shape in shapes.items()
        }

    # The file.

    def text(self) -> str:
        prefix = "!!python/object:ciderpress.dft.transform_data."
        maps = [
            f"{prefix}UMap {{_bounds: !!python/tuple [0, 1], gamma: {GAMMA_P}, i: 1}}",
            f"{prefix}VMap {{_bounds: !!python/tuple [-1.0, 1.0], center: 1.0, gamma: 1.0, i: 2, "
            "scale: 2.0}",
        ]
        for i in self.read:
            maps.append(
                f"{prefix}VMap {{_bounds: !!python/tuple [-0.5, 0.5], center: {CENTER_V}, "
                f"gamma: {GAMMA_V}, i: {i}, scale: {SCALE_V}}}"
            )
        used = [self.powers[i] for count in self.counts for i in range(count)]
        normalizers = ["null", "null", "null"] + [
            "!!python/object:ciderpress.dft.feat_normalizer.DensityNormalizer "
            f"{{const: {constant}, power: {-1 - j / 3}}}"
            for constant, j in zip(self.constants, used, strict=True)
        ]
        sdmx = f"""!!python/object:ciderpress.dft.settings.SDMXFullSettings
    _settings:
      1.0: !!python/tuple [{list(self.powers)}, {list(self.counts)}]
      2.0: !!python/tuple [[], [0, 0, 0, 0]]"""
        return f"""\
!!python/object:ciderpress.dft.xc_evaluator.MappedXC
kernels:
- !!python/object:ciderpress.dft.xc_evaluator.MappedDFTKernel
  _add_basefunc: !!python/name:ciderpress.dft.baselines.{BASELINES[self.baseline]} ''
  _mul_basefunc: !!python/name:ciderpress.dft.baselines.lda_x ''
  feature_list: !!python/object:ciderpress.dft.transform_data.FeatureList
    feat_list:{"".join(f"{chr(10)}    - {m}" for m in maps)}
  fevals:
  - !!python/object:ciderpress.dft.xc_evaluator.NNEvaluator
    cuda_is_available: !!python/name:torch.cuda.is_available ''
    device: !!python/object/apply:torch.device [cpu]
    device_init: !!python/name:torch.device ''
    eval_grad: !!python/name:torch.autograd.grad ''
    model: {self.network()}
    tensor_init: !!python/name:torch.tensor ''
  mode: SEP
libxc_baseline: null
{feature_settings("MGGA", "npa", normalizers, sdmx=sdmx)}"""

    def network(self) -> str:
        layers = {name: linear(*values) for name, values in self.arrays().items()}
        lists = {
            name: module(
                "torch.nn.modules.container.ModuleList",
                {str(i): layers.pop(f"{name}.{i}") for i in range(2)},
            )
            for name in ("lls", "l2s")
        }
        activation = module("torch.nn.modules.activation.Tanh")
        return module("ciderpress.dft.xc_torch.XNet", layers | lists | {"af": activation})

    # Its formulas.

    @property
    def num_nonlocal(self) -> int:
        return len(self.read)

    def correction(self, p: np.ndarray, alpha: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The learned part g, of features over powers of the density in the order of reading."""
        rows = [GAMMA_P * p / (1 + GAMMA_P * p), 2 * alpha / (1 + alpha) - 1]
        # Theirs are minus a quarter of ours.
        constants = -0.25 * np.array([self.constants[i - 3] for i in self.read])
        scaled = GAMMA_V * constants[:, None] * features
        x = np.array([*rows, *(SCALE_V * scaled / (1 + scaled) - CENTER_V)])

        def layer(name: str, values: np.ndarray) -> np.ndarray:
            weights, biases = self.arrays()[name]
            return weights @ values + biases[:, None]

        hidden = layer("l0", x)
        for i in range(2):
            hidden = np.tanh(layer(f"l2s.{i}", x) * hidden + layer(f"lls.{i}", hidden))
        return layer("last", hidden)[0]


EMPTY = "!!python/object:ciderpress.dft.settings.EmptySettings {}"
normalizer = "!!python/object:ciderpress.dft.feat_normalizer.ConstantNormalizer"


NO_DISPERSION = "vdw_eval_mode: null\nvdw_fit_info: null\nvdw_fit_term: null\n"


def feature_settings(
    level: str, mode: str, normalizers: list[str], nldf: str = EMPTY, sdmx: str = EMPTY
) -> str:
    """Which features a model has."""
    return f"""\
settings: !!python/object:ciderpress.dft.settings.FeatureSettings
  hyb_settings: {EMPTY}
  nldf_settings: {nldf}
  nlof_settings: {EMPTY}
  normalizers: !!python/object:ciderpress.dft.feat_normalizer.FeatNormalizerList
    _normalizers: [{", ".join(normalizers)}]
    cutoff: 1.0e-10
    slmode: {mode}
  sdmx_settings: {sdmx}
  sl_settings: !!python/object:ciderpress.dft.settings.SemilocalSettings
    level: {level}
    mode: {mode}
"""


def dispersion(kind: str, parameters: str) -> str:
    """In place of ``NO_DISPERSION``."""
    info = f"{{kind: {kind}, params: {parameters}, term: {kind}, units: Ha}}"
    return f"vdw_eval_mode: post_density\nvdw_fit_info: {info}\nvdw_fit_term: {kind}\n"


def b_splines(x: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """All cubic B-splines of uniform knots at points between them."""
    step = (high - low) / (count - 1)
    knots = low + step * np.arange(-3, count + 3)
    return BSpline.design_matrix(x, knots, 3, extrapolate=True).toarray()


def array(values: np.ndarray, fortran: bool = False) -> str:
    code = F8.replace("f8", {"float64": "f8", "int64": "i8", "int32": "i4"}[str(values.dtype)])
    content = base64.b64encode(values.tobytes("F" if fortran else "C")).decode()
    return (
        "!!python/object/apply:numpy.core.multiarray._reconstruct {args: "
        "[!!python/name:numpy.ndarray '', !!python/tuple [0], !!binary Yg==], state: "
        f"!!python/tuple [1, {sequence(values.shape)}, {code}, {str(fortran).lower()}, "
        f'!!binary "{content}"]}}'
    )


def scalar(value: float | int) -> str:
    code = F8 if isinstance(value, float) else F8.replace("f8", "i8")
    content = base64.b64encode(np.array(value).tobytes()).decode()
    return f'!!python/object/apply:numpy.core.multiarray.scalar [{code}, !!binary "{content}"]'


def torch_storage(values: np.ndarray) -> bytes:
    """What torch.save writes for the storage of a tensor, in its format before PyTorch 1.6."""
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4},
    }
    kind = {"float64": "Double", "float32": "Float", "int64": "Long"}[str(values.dtype)]
    head = [0x1950A86A20F9469CFC6C, 1001, machine]
    reference = b"\x80\x02(" + b"".join(
        [
            text("storage"),
            f"ctorch\n{kind}Storage\n".encode(),
            text("4242"),
            text("cpu"),
            b"J" + values.size.to_bytes(4, "little"),
            b"NtQ.",
        ]
    )
    return b"".join(
        [
            *(pickle.dumps(part, 2) for part in head),
            reference,
            pickle.dumps(["4242"], 2),
            values.size.to_bytes(8, "little"),
            values.tobytes(),
        ]
    )


def text(value: str) -> bytes:
    """The instruction of a pickle that holds a text."""
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor(values: np.ndarray, storage: bytes | None = None) -> str:
    """A parameter of a network."""
    stored = torch_storage(values) if storage is None else storage
    content = base64.b64encode(stored).decode()
    strides = tuple(step // values.itemsize for step in values.strides)
    hooks = ordered({})
    return (
        "!!python/object/apply:torch._utils._rebuild_parameter "
        "[!!python/object/apply:torch._utils._rebuild_tensor_v2 "
        f'[!!python/object/apply:torch.storage._load_from_bytes [!!binary "{content}"], 0, '
        f"{sequence(values.shape)}, {sequence(strides)}, false, {hooks}], true, {hooks}]"
    )


def linear(weights: np.ndarray, biases: np.ndarray) -> str:
    """A linear layer of a network."""
    parameters = {"weight": tensor(weights), "bias": tensor(biases)}
    return module("torch.nn.modules.linear.Linear", {}, parameters)


def module(
    name: str, modules: dict[str, str] | None = None, parameters: dict[str, str] | None = None
) -> str:
    """A network or a part of one, with all that torch writes of it."""
    hooks = (
        *("backward_hooks", "backward_pre_hooks", "forward_hooks", "forward_hooks_with_kwargs"),
        *("forward_pre_hooks", "forward_pre_hooks_with_kwargs", "load_state_dict_post_hooks"),
        *("load_state_dict_pre_hooks", "state_dict_hooks", "state_dict_pre_hooks", "buffers"),
    )
    fields = {f"_{kind}": ordered({}) for kind in hooks}
    fields |= {"_is_full_backward_hook": "null", "_non_persistent_buffers_set": "!!set {}"}
    fields |= {"_modules": ordered(modules or {}), "_parameters": ordered(parameters or {})}
    content = ", ".join(f"{key}: {value}" for key, value in fields.items())
    return f"!!python/object:{name} {{{content}, training: false}}"


def ordered(entries: dict[str, str]) -> str:
    """An ordered dictionary; numbers as keys are texts."""
    pairs = ", ".join(f"['{key}', {value}]" for key, value in entries.items())
    return f"!!python/object/apply:collections.OrderedDict [[{pairs}]]"


def indices(term: tuple[int, ...]) -> str:
    """One index as a NumPy scalar, as some files have it."""
    if len(term) == 1:
        return f"!!python/tuple [{scalar(term[0])}]"
    return sequence(term)


def sequence(values: tuple[float, ...]) -> str:
    return f"!!python/tuple [{', '.join(map(str, values))}]"


XC = PublishedXc()
MODELS = {
    "sl gga": PublishedModel(),
    "sl mgga": PublishedModel("MGGA", "GGA_X_PBE"),
    "nl gga": PublishedModel(nldf=True),
    "nl mgga": PublishedModel("MGGA", nldf=True),
    "sdmx": PublishedSdmx(),
}
