"""What a model repository can be asked for, and what is impossible refused at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ...errors import ConfigError
from ...runtime.bundle.open import Bundle

ServingBackend = Literal["onnxruntime", "tensorrt"]
ServingDevice = Literal["cpu", "gpu"]
MAX_SIDE = 8192


@dataclass(frozen=True)
class RepositoryOptions:
    """How models are served; defaults suit a CPU and a few clients."""

    backends: Mapping[str, ServingBackend] = field(default_factory=dict)
    """Model -> backend; onnxruntime where nothing is said. tensorrt takes plans of the bundle."""
    device: ServingDevice = "cpu"
    """Of the onnxruntime models; tensorrt always runs on a GPU."""
    gpus: tuple[int, ...] = ()
    """Indices; all GPUs that the server sees by default."""
    max_batch_size: int = 8
    """Images that one execution takes; of equal size, as others are never joined."""
    instances: int = 1
    """Copies of each model (on each GPU), which run at the same time."""
    intra_op_threads: int | None = None
    """Threads of an onnxruntime session on the CPU; all cores by default."""
    shrink_memory: bool = False
    """Give memory back after every run, instead of keeping that of the largest batch seen; an
    image then takes a fifth longer. Of onnxruntime on the CPU."""
    max_queue_delay: int = 0
    """Microseconds that a request waits for others to share its batch. 0: while an instance is
    free nobody waits, and under load the queue fills batches by itself; a GPU may gain by 2000."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """Sizes at which a batch does not wait any longer; set them only where they were measured."""
    max_queue_size: int = 128
    """Requests that wait at one model; further ones are refused at once. 0: without bound."""
    default_timeout: int = 0
    """Microseconds in a queue after which a request is refused; a client may ask for less.
    0: never."""
    priority_levels: int = 0
    """Levels that a request can name, 1 the most urgent; the default is the middle one. 0: none."""
    warmup: tuple[tuple[int, int], ...] = ()
    """(height, width) of images that are run before a model counts as ready."""
    decode: bool = False
    """Add `decode` and `label_encoded`, which take JPEG or PNG bytes. The container then needs
    Pillow or OpenCV for its Python."""
    max_pixels: int = 4_194_304
    """Height times width of the largest image that a model takes, such as 2048 x 2048. A label of
    20 classes costs 2 to 3 KB a pixel. TensorRT's plans have the sizes they were built for."""
    versions_served: int = 2
    """Versions of a graph that stay loaded, so that a rolling update breaks no request."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ConfigError: all faults in one line.
        """
        faults = [*_choice_faults(self), *_range_faults(self)]
        for size in self.preferred_batch_sizes:
            if not 1 <= size <= self.max_batch_size:
                faults.append(
                    f"preferred_batch_sizes has {size}, must be in 1 to max_batch_size "
                    f"({self.max_batch_size})"
                )
        if self.gpus and self.device == "cpu" and "tensorrt" not in self.backends.values():
            faults.append("gpus are given but device is cpu: set device=gpu")
        if self.shrink_memory and self.device == "gpu":
            faults.append("shrink_memory is for device=cpu: leave it out")
        for height, width in self.warmup:
            if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
                faults.append(f"warmup is {height}x{width}, sides must be in 1 to {MAX_SIDE}")
        if faults:
            raise ConfigError(f"Triton repository: {'; '.join(faults)}")

    def backend_of(self, name: str) -> ServingBackend:
        """Backend of a model."""
        return self.backends.get(name, "onnxruntime")

    def check_against(self, bundle: Bundle) -> None:
        """Refuse what this bundle cannot give.

        Raises:
            ConfigError: all faults in one line.
        """
        faults = []
        for name, backend in self.backends.items():
            if name not in bundle.graphs:
                has = ", ".join(bundle.graphs)
                faults.append(f"backends names '{name}', which the bundle lacks: it has {has}")
            elif backend == "tensorrt":
                faults += _plan_faults(bundle, name, self.max_batch_size)
        if faults:
            raise ConfigError(f"Triton repository: {'; '.join(faults)}")


_BOUNDS: dict[str, tuple[int, int]] = {
    "max_batch_size": (1, 1024),
    "instances": (1, 64),
    "intra_op_threads": (1, 256),
    "max_queue_delay": (0, 10_000_000),
    "max_queue_size": (0, 1_000_000),
    "default_timeout": (0, 3_600_000_000),
    "priority_levels": (0, 100),
    "max_pixels": (1, 178_956_970),
    "versions_served": (1, 16),
}


def _choice_faults(options: RepositoryOptions) -> list[str]:
    faults = []
    if options.device not in get_args(ServingDevice):
        faults.append(f"device is '{options.device}', must be cpu or gpu")
    for name, backend in options.backends.items():
        if backend not in get_args(ServingBackend):
            faults.append(f"backend of {name} is '{backend}', must be onnxruntime or tensorrt")
    return faults


def _range_faults(options: RepositoryOptions) -> list[str]:
    faults = []
    for name, (least, most) in _BOUNDS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            faults.append(f"{name} is {value}, must be in {least} to {most}")
    for index in options.gpus:
        if index < 0:
            faults.append(f"gpus has {index}, must be at least 0")
    return faults


def _plan_faults(bundle: Bundle, name: str, max_batch_size: int) -> list[str]:
    plans = bundle.engines_of(name)
    if not plans:
        return [
            f"the bundle has no TensorRT plan of '{name}': build it by `wsss export "
            f"{bundle.folder} --tensorrt`"
        ]
    capabilities = [plan.compute_capability for plan in plans]
    faults = [
        f"the bundle has several plans of '{name}' for compute capability {each}, and a server "
        "takes one: remove those of other TensorRT versions"
        for each in sorted(set(capabilities))
        if capabilities.count(each) > 1
    ]
    if max_batch_size > bundle.sizes["batch"][2]:
        faults.append(
            f"max_batch_size is {max_batch_size}, the plans take up to {bundle.sizes['batch'][2]}"
        )
    return faults


def options_to_json(options: RepositoryOptions) -> dict[str, Any]:
    """JSON-compatible, as `options_from_json` reads it."""
    return {each.name: _plain(getattr(options, each.name)) for each in fields(options)}


def options_from_json(content: Mapping[str, Any]) -> RepositoryOptions:
    """Options from what `options_to_json` made.

    Raises:
        ConfigError: impossible values; TypeError: other keys.
    """
    return RepositoryOptions(**{key: _frozen(value) for key, value in content.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


def options_from_settings(
    settings: Sequence[str], base: RepositoryOptions | None = None
) -> RepositoryOptions:
    """Options from texts KEY=VALUE, as the command line has them.

    Args:
        settings: such as `instances=2`, `backends=cam:tensorrt,label:tensorrt`,
            `warmup=321x481,512x512`, `preferred_batch_sizes=4,8`, `decode=true`; `instances=`
            means the default.
        base: what is not named stays as it is there; by default everything has its default.

    Raises:
        ConfigError: unknown key, or a value of another kind.
    """
    known = {each.name for each in fields(RepositoryOptions)}
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in known:
            raise ConfigError(
                f"unknown Triton option '{setting}': give KEY=VALUE with a key of "
                f"{', '.join(sorted(known))}"
            )
        if not text.strip():
            values[key] = getattr(RepositoryOptions(), key)
            continue
        try:
            values[key] = _value(key, text)
        except ValueError:
            raise ConfigError(
                f"Triton option '{setting}' is not understood: expected {_EXPECTED.get(key)}"
                if key in _EXPECTED
                else f"Triton option '{setting}' is not understood: expected a whole number"
            ) from None
    return replace(base or RepositoryOptions(), **values)


_EXPECTED = {
    "backends": "MODEL:BACKEND with commas between",
    "gpus": "whole numbers with commas between",
    "preferred_batch_sizes": "whole numbers with commas between",
    "warmup": "HEIGHTxWIDTH with commas between",
    **dict.fromkeys(("decode", "shrink_memory"), "true or false"),
}


def _value(key: str, text: str) -> Any:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if key == "device":
        return text
    if key == "backends":
        pairs = (part.split(":") for part in parts)
        return {name: backend for name, backend in pairs}
    if key in ("gpus", "preferred_batch_sizes"):
        return tuple(int(part) for part in parts)
    if key == "warmup":
        sizes = [part.split("x") for part in parts]
        return tuple((int(height), int(width)) for height, width in sizes)
    if key in ("decode", "shrink_memory"):
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    return int(text)
