//! The CPU's own forward and backward passes against the same functions composed of burn's
//! operations, whose gradients burn derives.

use burn::module::Module;
use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{DType, Device, Distribution, Tensor};
use vlm4d_train::model::attention::{self, QUERIES};
use vlm4d_train::model::cpu;
use vlm4d_train::model::linear::{Linear, cast};
use vlm4d_train::model::lora::Lora;
use vlm4d_train::model::nf4::Nf4;

use crate::support::model::values;
use crate::support::{alone, max_difference, relative_difference};

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    normal(shape, 1.0).autodiff().require_grad()
}

fn normal<const D: usize>(shape: [usize; D], deviation: f64) -> Tensor<D> {
    let _alone = alone();
    Tensor::random(shape, Distribution::Normal(0.0, deviation), &Device::flex())
}

/// Compares `ours` with `composed` on one input: outputs, and gradients of `Σ y·g` for some `g`.
fn compare<const N: usize, const D: usize, const E: usize>(
    what: &str,
    inputs: &[Tensor<D>; N],
    ours: impl Fn([Tensor<D>; N]) -> Tensor<E>,
    composed: impl Fn([Tensor<D>; N]) -> Tensor<E>,
) {
    let [got, want] = [ours(inputs.clone()), composed(inputs.clone())];
    assert_eq!(got.dims(), want.dims(), "{what}");
    let difference = relative_difference(&values(got.clone()), &values(want.clone()));
    assert!(difference < 1e-6, "{what}: {difference:e}");
    let untaped = ours(inputs.clone().map(Tensor::inner));
    assert_eq!(values(untaped), values(got.clone()), "{what} without a tape");
    let g = normal(got.dims(), 1.0).autodiff();
    let [mut got, mut want] = [got, want].map(|y| (y * g.clone()).sum().backward());
    for (i, input) in inputs.iter().enumerate() {
        let [a, b] =
            [&mut got, &mut want].map(|all| values(input.grad_remove(all).expect("a gradient")));
        let difference = relative_difference(&a, &b);
        assert!(difference < 3e-6, "{what}, gradient of input {i}: {difference:e}");
    }
}

#[test]
fn attention_is_softmax_of_scores_times_values() {
    for (b, h, kv, t, s, d, causal) in [
        (1, 4, 2, 150, 150, 16, true),
        (2, 3, 3, 70, 70, 8, false),
        (1, 2, 1, 5, 133, 8, true),
        (1, 6, 2, 1, 40, 16, false),
        (3, 4, 4, 64, 64, 12, false),
        // More queries than are composed at once.
        (1, 2, 1, QUERIES + 90, QUERIES + 130, 8, true),
        (1, 2, 2, 2 * QUERIES + 1, 2 * QUERIES + 1, 8, true),
    ] {
        // As the linear layers give them: `[b, t, h, d]` in memory.
        let inputs = [random([b, t, h, d]), random([b, s, kv, d]), random([b, s, kv, d])];
        let repeated = |[q, k, v]: [Tensor<4>; 3]| {
            let repeated = |x: Tensor<4>| {
                let x = x.reshape([b, kv, 1, s, d]).repeat_dim(2, h / kv);
                x.reshape([b, h, s, d])
            };
            let [q, k, v] = [q, k, v].map(|x| x.swap_dims(1, 2));
            let (k, v) = (repeated(k), repeated(v));
            let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(1.0 / (d as f64).sqrt());
            let hidden = (0..t).flat_map(|i| {
                (0..s).map(move |j| if causal && j > s - t + i { -1e9 } else { 0.0 })
            });
            let hidden: Vec<f32> = hidden.collect();
            let hidden = Tensor::<1>::from_floats(hidden.as_slice(), &scores.device());
            softmax(scores + hidden.reshape([1, 1, t, s]), 3).matmul(v)
        };
        let ours = |qkv: [Tensor<4>; 3]| {
            let [q, k, v] = qkv.map(|x| x.swap_dims(1, 2));
            cpu::attention(q, k, v, causal)
        };
        let composed = |qkv: [Tensor<4>; 3]| {
            let [q, k, v] = qkv.map(|x| x.swap_dims(1, 2));
            attention::composed(q, k, v, causal)
        };
        let fused = |qkv: [Tensor<4>; 3]| {
            let [q, k, v] = qkv.map(|x| x.swap_dims(1, 2));
            attention::fused(q, k, v, causal)
        };
        compare(&format!("{t} queries, {s} keys"), &inputs, ours, repeated);
        compare(&format!("composed, {t} queries, {s} keys"), &inputs, ours, composed);
        compare(&format!("by burn, {t} queries, {s} keys"), &inputs, ours, fused);
    }
}

#[test]
fn attention_in_bf16_has_its_statistics_in_f32() {
    // A softmax in bf16 could tell 2,000 nearly equal weights neither from each other nor from 0.
    let shape = [1, 2, 2_000, 16];
    let random = || normal(shape, 0.2);
    let [q, k, v] = [random(), random(), random().add_scalar(1.0)];
    let want = values(cpu::attention(q.clone(), k.clone(), v.clone(), true));
    let [q, k, v] = [q, k, v].map(|x| cast(x, DType::BF16));
    let got = values(cast(attention::attention(q, k, v, true), DType::F32));
    let difference = max_difference(&got, &want);
    assert!(difference < 0.01, "{difference}");
}

#[test]
fn norms_are_what_they_are_named_for() {
    let [rows, d] = [67, 40];
    let input = || random([rows, d]);
    let (weight, bias) = (random([1, d]), random([1, d]));
    let flat = |x: Tensor<2>| x.reshape([d]);
    compare(
        "RMSNorm",
        &[input(), weight.clone()],
        |[x, w]| cpu::rms_norm(x, flat(w), 1e-6),
        |[x, w]| {
            let scale = x.clone().square().mean_dim(1).add_scalar(1e-6).sqrt().recip();
            x * scale * w
        },
    );
    compare(
        "LayerNorm",
        &[input(), weight, bias],
        |[x, w, b]| cpu::layer_norm(x, flat(w), flat(b), 1e-6),
        |[x, w, b]| {
            let centred = x.clone() - x.mean_dim(1);
            let std = centred.clone().square().mean_dim(1).add_scalar(1e-6).sqrt();
            centred / std * w + b
        },
    );
}

#[test]
fn activations_are_what_they_are_named_for() {
    // More than one task's share, and no multiple of a vector.
    let input = || random([113, 307]);
    compare(
        "SwiGLU",
        &[input(), input()],
        |[gate, up]| cpu::swiglu(gate, up),
        |[gate, up]| silu(gate) * up,
    );
    let composed = |[x]: [Tensor<2>; 1]| x.clone() * sigmoid(x.mul_scalar(1.702));
    compare("quick GELU", &[input()], |[x]| cpu::quick_gelu(x), composed);
}

#[test]
fn rotation_turns_the_halves_of_a_head() {
    let [b, i, j, d] = [2, 5, 7, 8];
    for shape in [[1, i, 1, d], [1, 1, j, d]] {
        let angles = random(shape).inner();
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let composed = |[x]: [Tensor<4>; 1]| {
            let [low, high] = [0, d / 2].map(|at| x.clone().narrow(3, at, d / 2));
            let turned = Tensor::cat(vec![high.neg(), low], 3);
            x * cos.clone().autodiff() + turned * sin.clone().autodiff()
        };
        let ours = |[x]: [Tensor<4>; 1]| cpu::rotate(x, cos.clone(), sin.clone());
        compare("contiguous", &[random([b, i, j, d])], ours, composed);
        let swapped = [random([b, j, i, d])];
        let turn = |[x]: [Tensor<4>; 1]| [x.swap_dims(1, 2)];
        compare("swapped", &swapped, |x| ours(turn(x)), |x| composed(turn(x)));
    }
}

#[test]
fn the_low_rank_update_is_added() {
    let [n, i, o, r] = [90, 24, 56, 4];
    // One shape for all, so that they fit one list: cut to what each is.
    let inputs = [random([n, o]), random([n, o]), random([n, o]), random([n, o])];
    let cut = |[y, x, a, b]: [Tensor<2>; 4]| {
        let part = |x: Tensor<2>, rows, columns| x.narrow(0, 0, rows).narrow(1, 0, columns);
        (y, part(x, n, i), part(a, i, r), part(b, r, o))
    };
    compare(
        "LoRA",
        &inputs,
        |all| {
            let (y, x, a, b) = cut(all);
            cpu::add_lora(y, x, a, b, 1.5)
        },
        |all| {
            let (y, x, a, b) = cut(all);
            y + x.matmul(a).matmul(b).mul_scalar(1.5)
        },
    );
}

#[test]
fn a_product_by_four_bits_is_that_by_their_numbers() {
    // Rows of parts of blocks, several panels, a last one that is not full.
    for [n, i, o] in [[90, 24, 56], [1, 64, 64], [37, 100, 200], [3, 520, 1100]] {
        let numbers = values(normal([o, i], 0.1));
        let weight = Nf4::new(numbers, [o, i], DType::F32, &Device::flex());
        compare(
            &format!("{n} × {i} × {o}"),
            &[random([2, n, i])],
            |[x]| weight.clone().train().product(x),
            |[x]| x.matmul(weight.values().autodiff().unsqueeze()),
        );
    }
}

#[test]
fn an_adapter_over_bf16_is_computed_in_bf16_and_learned_in_f32() {
    let [n, i, o, r] = [60, 24, 56, 4];
    let (x, weight, g) = (random([n, i]), random([i, o]), random([n, o]).inner());
    let (a, b) = (random([i, r]).inner(), random([r, o]).inner());
    let of = |dtype: DType| {
        let lora = Lora::from_tensors(a.clone(), b.clone(), 1.5, 0.0).train();
        let weight = cast(weight.clone().inner(), dtype).into();
        let layer = Linear { weight, bias: None, lora: Some(lora) }.train();
        let mut fixed = layer.valid();
        fixed.for_inference();
        let alone = fixed.forward(cast(x.clone().inner(), dtype), false);
        let x = cast(x.clone().inner(), dtype).autodiff().require_grad();
        let y = layer.forward(x.clone(), true);
        assert_eq!(y.dtype(), dtype);
        let mut gradients = (cast(y.clone(), DType::F32) * g.clone().autodiff()).sum().backward();
        let lora = layer.lora.expect("an adapter");
        let [a, b] = [lora.lora_a.val(), lora.lora_b.val()]
            .map(|w| w.grad_remove(&mut gradients).expect("a gradient"));
        assert_eq!([a.dtype(), b.dtype()], [DType::F32; 2]);
        let x = x.grad_remove(&mut gradients).expect("a gradient");
        [y.inner(), alone, x, a, b].map(|tensor| values(cast(tensor, DType::F32)))
    };
    let (got, want) = (of(DType::BF16), of(DType::F32));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let difference = relative_difference(got, want);
        assert!(0.0 < difference && difference < 0.01, "{i}: {difference:e}");
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let device = Device::flex();
    let x = Tensor::<2>::from_floats([[1.0, f32::NAN, 3.0], [1.0, 2.0, 3.0]], &device);
    let one = Tensor::<1>::ones([3], &device);
    let found = |y: Tensor<2>| values(y).iter().map(|y| y.is_nan()).collect::<Vec<_>>();
    assert_eq!(found(cpu::quick_gelu(x.clone())), [false, true, false, false, false, false]);
    assert!(found(cpu::swiglu(x.clone(), x.clone()))[1]);
    assert_eq!(found(cpu::rms_norm(x.clone(), one, 0.0))[..4], [true, true, true, false]);
    let x = x.reshape([1, 1, 2, 3]);
    let y = values(cpu::attention(x.clone(), x.clone(), x, false));
    assert!(y[..3].iter().all(|y| y.is_nan()), "{y:?}");
}
