"""`sparkpool layout`: what a model's weights and cache weigh, and how that compares with another's."""

from dataclasses import dataclass

from hardware.model import Model

CONTEXTS = (8192, 131_072, 2**20)


@dataclass(frozen=True)
class Layout:
    """A model, and perhaps another that it is compared with."""

    model: Model
    against: Model | None = None

    def as_json(self) -> dict[str, object]:
        """Bytes everywhere. `kept` is full + window: what papers count; the compressors' inputs are apart."""
        content = _described(self.model)
        if self.against is not None:
            content["against"] = _described(self.against)
            content["ratio"] = {
                "growing_bytes_per_token": self.against.growing_bytes / self.model.growing_bytes,
                "kept": {str(n): self.against.kept_bytes(n) / self.model.kept_bytes(n) for n in CONTEXTS},
            }
        return content

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """(title, columns, rows), for a terminal."""
        model, other = self.model, self.against
        weights = [
            ["parameters", f"{model.parameters / 1e9:,.2f} B, of which {model.active_parameters / 1e9:,.2f} B a token"],
            ["weights", f"{size(model.weight_bytes)} ({model.dense}; routed experts {model.routed})"],
            ["routed experts", size(model.routed_bytes)],
            ["read for one token", size(model.touched_bytes(1))],
        ]
        entries = [
            [name, str(layers), f"{each:,.1f}", f"{layers * each:,.1f}"]
            for name, (layers, each) in growing(model).items()
        ]
        entries.append(["all that grows", "", "", f"{model.growing_bytes:,.1f}"])
        columns = ["context", "full", "window", "kept", "inputs", "a step reads", *(["kept, of"] if other else [])]
        rows = []
        for context in CONTEXTS:
            held = model.cache_bytes(context)
            row = [f"{context:,}", size(held["full"]), size(held["window"]), size(model.kept_bytes(context))]
            row += [size(held["compressor"]), size(model.read_bytes(context))]
            if other:
                row.append(f"{model.kept_bytes(context) / other.kept_bytes(context):.1%}")
            rows.append(row)
        return [
            (model.name, ["", ""], weights),
            ("bytes that each token adds", ["entry", "layers", "a layer", "in all"], entries),
            ("cache of one request" + (f", and its share of {other.name}'s" if other else ""), columns, rows),
        ]


def growing(model: Model) -> dict[str, tuple[int, float]]:
    """Entries that grow with the context: how many layers have them, and their bytes for each token there."""
    found: dict[str, tuple[int, float]] = {}
    for kind, layers in model.attentions.items():
        for entry in kind.cache:
            if entry.window is None:
                name = entry.name if entry.tokens == 1 else f"{entry.name}, one for {entry.tokens} tokens"
                had, each = found.get(name, (0, entry.size / entry.tokens))
                found[name] = (had + layers, each)
    return found


def size(count: float) -> str:
    """Decimal, as memory bandwidths are."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:,.3g} {unit}" if count < 1000 * one else f"{count / one:,.0f} {unit}"
    return f"{count:,.0f} B"


def _described(model: Model) -> dict[str, object]:
    return {
        "model": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "routed_bytes": model.routed_bytes,
        "touched_bytes_one_token": model.touched_bytes(1),
        "growing_bytes_per_token": model.growing_bytes,
        "growing": {name: {"layers": n, "bytes_per_token": each} for name, (n, each) in growing(model).items()},
        "request": {
            str(n): {**model.cache_bytes(n), "kept": model.kept_bytes(n), "read_by_a_step": model.read_bytes(n)}
            for n in CONTEXTS
        },
    }
