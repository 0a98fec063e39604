"""The instructions of PTX that Triton's kernels consist of, each as a function in C++ for machine.h.

`o` has an instruction's operands: numbers of registers, and of an address the number of the register and an offset. An
immediate operand is a register that always holds it.
"""

from __future__ import annotations

_TYPES = {
    "pred": "uint8_t", "b8": "uint8_t", "u8": "uint8_t", "s8": "int8_t", "b16": "uint16_t", "u16": "uint16_t",
    "s16": "int16_t", "f16": "_Float16", "b32": "uint32_t", "u32": "uint32_t", "s32": "int32_t", "f32": "float",
    "b64": "uint64_t", "u64": "uint64_t", "s64": "int64_t", "f64": "double",
}  # fmt: skip
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OPPOSITES = {"neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}  # true where one is no number


def instructions() -> dict[str, str]:
    """The body of each instruction's function, by its name and what is in its braces."""
    return _arithmetic() | _comparisons() | _conversions() | _moves() | _memory() | _warp_wide() | _tensor_cores()


def _lanes(result: str, *kinds: str) -> str:
    """For each lane: the result of operands of these types, which it calls a, b and c."""
    given = "".join(
        f"const auto {name} = as<{_TYPES[kind]}>(R[o[{i}]][l]); "
        for i, (name, kind) in enumerate(zip("abc", kinds, strict=False), 1)
    )
    return f"EACH(m) {{ {given}set(R[o[0]][l], {result}); }}"


def _arithmetic() -> dict[str, str]:
    found = {}
    for kind, c in _TYPES.items():
        bits = kind[1:]
        if kind in ("s16", "s32", "s64", "u16", "u32", "u64"):
            wraps = f"u{bits}"
            u = _TYPES[wraps]
            for name, sign in (("add", "+"), ("sub", "-"), ("mul.lo", "*")):
                found[f"{name}.{kind}"] = _lanes(f"{u}(a {sign} b)", wraps, wraps)
            found[f"mad.lo.{kind}"] = _lanes(f"{u}(a * b + c)", *3 * [wraps])
            found[f"neg.{kind}"] = _lanes(f"{u}(-a)", wraps)
            for name, result in (("div", "a / b"), ("rem", "a % b"), ("max", f"std::max<{c}>(a, b)")):
                found[f"{name}.{kind}"] = _lanes(f"{c}({result})", kind, kind)
            found[f"min.{kind}"] = _lanes(f"std::min<{c}>(a, b)", kind, kind)
            found[f"shr.{kind}"] = _lanes(f"shifted_right<{c}>(a, b)", kind, "u32")
            found[f"bfe.{kind}"] = _lanes(f"field<{c}>(a, b, c)", kind, "u32", "u32")
            if bits != "16":
                sign = "unsigned " if kind[0] == "u" else ""
                twice = f"({sign}{'__int128' if bits == '64' else 'long'})"
                found[f"mul.hi.{kind}"] = _lanes(f"{c}({twice}a * {twice}b >> {bits})", kind, kind)
            if bits != "64":
                wide = kind[0] + str(2 * int(bits))
                w = _TYPES[wide]
                found[f"mul.wide.{kind}"] = _lanes(f"{w}({w}(a) * {w}(b))", kind, kind)
                found[f"mad.wide.{kind}"] = _lanes(f"{w}({w}(a) * {w}(b) + c)", kind, kind, wide)
        if kind in ("b16", "b32", "b64"):
            found[f"shl.{kind}"] = _lanes(f"shifted_left<{c}>(a, b)", kind, "u32")
            found[f"not.{kind}"] = _lanes(f"{c}(~a)", kind)
        if kind in ("pred", "b16", "b32", "b64"):
            for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
                found[f"{name}.{kind}"] = _lanes(f"{c}(a {sign} b)", kind, kind)
        if kind in ("f32", "f64"):
            for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")):
                found[f"{name}.rn.{kind}"] = _lanes(f"a {sign} b", kind, kind)
            found[f"fma.rn.{kind}"] = _lanes("std::fma(a, b, c)", kind, kind, kind)
            for name, result in (("max", "larger(a, b)"), ("min", "smaller(a, b)")):
                found[f"{name}.{kind}"] = _lanes(result, kind, kind)
            for name, result in (("neg", "-a"), ("abs", "std::fabs(a)"), ("sqrt.rn", "std::sqrt(a)")):
                found[f"{name}.{kind}"] = _lanes(result, kind)
        if kind != "pred" and int(bits) >= 16:
            found[f"selp.{kind}"] = _lanes("c ? a : b", kind, kind, "pred")
    return found | {
        "max.f32 r r r r": _lanes("larger(a, larger(b, c))", "f32", "f32", "f32"),
        "not.pred": _lanes("uint8_t(!a)", "pred"),
        "abs.ftz.f32": _lanes("flushed(std::fabs(a))", "f32"),
        "rcp.approx.ftz.f64": _lanes("reciprocal(a)", "f64"),
        "popc.b32": _lanes("uint32_t(__builtin_popcount(a))", "b32"),
        "prmt.b32": _lanes("permuted(a, b, c)", "b32", "b32", "b32"),
    }


def _comparisons() -> dict[str, str]:
    found = {}
    for kind in _TYPES:
        if kind in ("pred", "f16") or kind.endswith("8"):
            continue
        for name, sign in _COMPARISONS.items():
            ordered = " && a == a && b == b" if (name, kind[0]) == ("ne", "f") else ""
            found[f"setp.{name}.{kind}"] = _lanes(f"uint8_t(a {sign} b{ordered})", kind, kind)
        if kind[0] == "f":
            for name, sign in _OPPOSITES.items():
                found[f"setp.{name}.{kind}"] = _lanes(f"uint8_t(!(a {sign} b))", kind, kind)
            found[f"setp.equ.{kind}"] = _lanes("uint8_t(a == b || a != a || b != b)", kind, kind)
            found[f"setp.nan.{kind}"] = _lanes("uint8_t(a != a || b != b)", kind, kind)
            found[f"setp.num.{kind}"] = _lanes("uint8_t(a == a && b == b)", kind, kind)
    return found


def _conversions() -> dict[str, str]:
    found = {}
    kinds = [kind for kind in _TYPES if kind[0] in "usf"]
    for to in kinds:
        for source in kinds:
            c = _TYPES[to]
            if to[0] == "f":  # to nearest, where something can be lost
                exact = source[0] == "f" and int(source[1:]) < int(to[1:])
                found[f"cvt.{'' if exact else 'rn.'}{to}.{source}"] = _lanes(f"{c}(a)", source)
            elif source[0] == "f":
                found[f"cvt.rzi.{to}.{source}"] = _lanes(f"whole<{c}>(a)", source)
            else:
                found[f"cvt.{to}.{source}"] = _lanes(f"{c}(a)", source)
    for kind in ("f32", "f64"):
        for name, rounded in (("rpi", "ceil"), ("rmi", "floor"), ("rni", "nearbyint"), ("rzi", "trunc")):
            found[f"cvt.{name}.{kind}.{kind}"] = _lanes(f"std::{rounded}(a)", kind)
    return found


def _moves() -> dict[str, str]:
    found = {f"mov.{kind}": _lanes("a", kind) for kind in _TYPES if not kind.endswith("8")}
    for whole, count in ((32, 2), (64, 2), (64, 4)):
        bits = whole // count
        u, small = f"uint{whole}_t", f"uint{bits}_t"
        parts = " ".join(f"set(R[o[{i}]][l], {small}(value >> {bits * i}));" for i in range(count))
        found[f"mov.b{whole} {{{count}}} r"] = f"EACH(m) {{ const auto value = as<{u}>(R[o[{count}]][l]); {parts} }}"
        parts = " | ".join(f"{u}(as<{small}>(R[o[{i + 1}]][l])) << {bits * i}" for i in range(count))
        found[f"mov.b{whole} r {{{count}}}"] = f"EACH(m) {{ const {u} value = {parts}; set(R[o[0]][l], value); }}"
    return found


def _memory() -> dict[str, str]:
    found = {}
    for kind in ("b8", "s8", "b16", "b32", "s32", "b64"):
        c = _TYPES[kind]
        found[f"ld.param.{kind}"] = f"EACH(m) set(R[o[0]][l], as<{c}>(b.params[o[1]]));"
        for count in (1, 2, 4, 8):
            vector, shape = (f".v{count}", f"{{{count}}}") if count > 1 else ("", "r")
            size = f"{count} * sizeof({c})"
            held = f"{c} v[{count}];"
            gets = "".join(f" set(R[o[{i}]][l], v[{i}]);" for i in range(count))
            puts = "".join(f" v[{i}] = as<{c}>(R[o[{i + 2}]][l]);" for i in range(count))
            at, to = (f"R[o[{i}]][l] + o[{i + 1}]" for i in (count, 0))
            checked = f"const uint64_t a = {{}}; b.global(a, {size});"
            there = "reinterpret_cast<void*>(a)"
            found[f"ld.global{vector}.{kind} {shape} []"] = (
                f"EACH(m) {{ {held} {checked.format(at)} std::memcpy(v, {there}, {size});{gets} }}"
            )
            found[f"st.global{vector}.{kind} [] {shape}"] = (
                f"EACH(m) {{ {held}{puts} {checked.format(to)} std::memcpy({there}, v, {size}); }}"
            )
            found[f"ld.shared{vector}.{kind} {shape} []"] = (
                f"EACH(m) {{ {held} b.read_shared(w, uint32_t({at}), v, {size});{gets} }}"
            )
            found[f"st.shared{vector}.{kind} [] {shape}"] = (
                f"EACH(m) {{ {held}{puts} b.write_shared(w, uint32_t({to}), v, {size}); }}"
            )
    for cache, sizes in (("cg", (16,)), ("ca", (4, 8, 16))):
        for size in sizes:
            copy = f"w.copy_async(uint32_t(R[o[0]][l] + o[1]), R[o[2]][l] + o[3], {size}, {{}});"
            some = f"std::min<uint64_t>({size}, R[o[5]][l])"
            name = f"cp.async.{cache}.shared.global [] [] {size}"
            found |= {name: f"EACH(m) {copy.format(size)}", f"{name} r": f"EACH(m) {copy.format(some)}"}
    return found | {
        "atom.global.gpu.acq_rel.add.u32 r [] r": (
            "EACH(m) set(R[o[0]][l], b.add_global(R[o[1]][l] + o[2], uint32_t(R[o[3]][l])));"
        ),
        "cp.async.commit_group": "Warp::together(m, ALL); w.commit_copies();",
        "cp.async.wait_group": "Warp::together(m, ALL); w.wait_copies(R[o[0]][0]);",
        "fence.proxy.async.shared::cta": "w.fence();",
    }


def _warp_wide() -> dict[str, str]:
    found = {}
    for mode in ("up", "down", "bfly", "idx"):
        operands = "R[o[0]], R[o[1]], R[o[2]], uint32_t(R[o[3]][0]), uint32_t(R[o[4]][0])"
        found[f"shfl.sync.{mode}.b32"] = f"shuffle<Shuffle::{mode}>(m, {operands});"
    operands = "R[o[0]], R[o[1]], uint32_t(R[o[2]][0])"
    for kind in ("s32", "u32"):
        c = _TYPES[kind]
        sum_ = f"{c}(uint32_t(a) + uint32_t(b))"
        for name, combined in (("add", sum_), ("max", "std::max(a, b)"), ("min", "std::min(a, b)")):
            combine = f"[]({c} a, {c} b) {{ return {combined}; }}"
            found[f"redux.sync.{name}.{kind}"] = f"reduce<{c}>(m, {operands}, {combine});"
    return found


def _fragment(first: int, count: int) -> str:
    return "{" + ", ".join(f"R[o[{first + i}]]" for i in range(count)) + "}"


def _tensor_cores() -> dict[str, str]:
    found = {}
    for name, function, sizes in (
        ("m16n8k32.row.col.satfinite.s32.s8.s8.s32", "mma_m16n8k32_s8", (4, 4, 2, 4)),
        ("m16n8k16.row.col.f32.f16.f16.f32", "mma_m16n8k16_f16", (4, 4, 2, 4)),
        ("m8n8k4.row.col.f64.f64.f64.f64", "mma_f64<8, 4>", (2, 1, 1, 2)),
        ("m16n8k4.row.col.f64.f64.f64.f64", "mma_f64<16, 4>", (4, 2, 1, 4)),
        ("m16n8k8.row.col.f64.f64.f64.f64", "mma_f64<16, 8>", (4, 4, 2, 4)),
        ("m16n8k16.row.col.f64.f64.f64.f64", "mma_f64<16, 16>", (4, 8, 4, 4)),
    ):
        starts = [sum(sizes[:i]) for i in range(4)]
        given = ", ".join(_fragment(start, size) for start, size in zip(starts, sizes, strict=True))
        shapes = " ".join(f"{{{size}}}" for size in sizes)
        found[f"mma.sync.aligned.{name} {shapes}"] = f"{function}(m, {given});"
    for count in (1, 2, 4):
        shape = f"{{{count}}}"
        found[f"ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {shape} []"] = (
            f"ldmatrix<{count}>(w, m, {_fragment(0, count)}, R[o[{count}]], o[{count + 1}]);"
        )
        found[f"stmatrix.sync.aligned.m8n8.x{count}.shared.b16 [] {shape}"] = (
            f"stmatrix<{count}>(w, m, {_fragment(2, count)}, R[o[0]], o[1]);"
        )
    for columns in (8, 16, 32, 64, 128):
        count = columns // 2
        d, left, right, adds = _fragment(0, count), *(f"R[o[{count + i}]][0]" for i in range(3))
        for types, kinds, more in (
            ("k32.s32.s8.s8", "int8_t, int32_t", ""),
            ("k16.f32.f16.f16", "_Float16, float", " r r r r"),  # signs and transpositions, which are not looked at
        ):
            name = f"wgmma.mma_async.sync.aligned.m64n{columns}{types} {{{count}}} r r r{more}"
            found[name] = f"wgmma<{kinds}, {count}>(w, m, {d}, {left}, {right}, {adds} != 0);"
    return found | {
        "wgmma.fence.sync.aligned": "Warp::together(m, ALL);",
        "wgmma.commit_group.sync.aligned": "Warp::together(m, ALL); w.commit_products();",
        "wgmma.wait_group.sync.aligned": "Warp::together(m, ALL); w.wait_products(R[o[0]][0]);",
    }
