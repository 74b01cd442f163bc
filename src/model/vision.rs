//! The vision tower: patches of one image or video → tokens for the language model.
//!
//! Enters `pixel_values: [patches, patch_dim]` in the processor's order (frame pair by frame
//! pair, each in 2×2 merge blocks), leaves `[patches / 4, hidden]`. Attention never crosses a
//! frame pair, so frame pairs stand in the batch dimension; so do windows of equal length.
//! Source: transformers' `Qwen2VisionTransformerPretrainedModel` and its Qwen2.5 successor.
//! Letters: `f` frame pairs, `n` patches in one, `e` width of the tower.

use burn::module::Module;
use burn::tensor::{
    Device, Int, Tensor,
    activation::{gelu, sigmoid},
};

use super::attention::attention;
use super::config::Config;
use super::cpu;
use super::language::Mlp;
use super::linear::{Linear, cast};
use super::norm::{LayerNorm, RmsNorm};
use super::parameters;
use super::rope::Rotary;

/// The vision tower.
#[derive(Module, Debug)]
pub struct VisionTower {
    /// Patches → `e`.
    pub patch_embed: PatchEmbed,
    /// Transformer blocks.
    pub blocks: Vec<VisionBlock>,
    /// 2×2 patches → one token.
    pub merger: PatchMerger,
}

/// The convolution over a patch, as the matrix product that it is.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// `patch_dim` → `e`, without bias.
    pub proj: Linear,
}

/// Pre-norm attention and MLP.
#[derive(Module, Debug)]
pub struct VisionBlock {
    /// Norm before attention.
    pub norm1: Norm,
    /// Norm before the MLP.
    pub norm2: Norm,
    /// Attention within a frame pair or window.
    pub attn: VisionAttention,
    /// MLP.
    pub mlp: VisionMlp,
}

/// LayerNorm in Qwen2-VL, RMSNorm in Qwen2.5-VL.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

/// Attention with one fused projection.
#[derive(Module, Debug)]
pub struct VisionAttention {
    /// `e` → `3e`: queries, keys, values.
    pub qkv: Linear,
    /// `e` → `e`.
    pub proj: Linear,
}

/// Quick-GELU MLP in Qwen2-VL, SwiGLU in Qwen2.5-VL.
#[derive(Module, Debug)]
#[allow(missing_docs)]
#[expect(clippy::large_enum_variant, reason = "a model holds one kind alone")]
pub enum VisionMlp {
    QuickGelu(QuickGeluMlp),
    SwiGlu(Mlp),
}

/// Two layers with quick-GELU between.
#[derive(Module, Debug)]
pub struct QuickGeluMlp {
    /// `e` → `inner`.
    pub fc1: Linear,
    /// `inner` → `e`.
    pub fc2: Linear,
}

/// Merges each 2×2 patch block into one language token.
#[derive(Module, Debug)]
pub struct PatchMerger {
    /// Norm of each patch.
    pub ln_q: Norm,
    /// Two layers with GELU between.
    pub mlp: MergerMlp,
}

/// `mlp.0` and `mlp.2` of the hub's `Sequential`; GELU, its `mlp.1`, has no weights.
#[derive(Module, Debug)]
pub struct MergerMlp {
    /// `4e` → `4e`.
    pub linear_0: Linear,
    /// `4e` → `hidden`.
    pub linear_2: Linear,
}

/// The order in which a tower works on the patches of a frame pair, and where windows lie in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowPlan {
    /// Merge blocks in window order, windows of equal length side by side.
    pub order: Vec<usize>,
    /// `(merge blocks per window, windows)` in that order.
    pub groups: Vec<(usize, usize)>,
}

/// The windows of one frame pair of `h × w` merge blocks, row-major, each a row-major list of
/// merge blocks; those at the right and lower edge are smaller.
pub fn windows(h: usize, w: usize, side: usize) -> Vec<Vec<usize>> {
    let starts = |n: usize| (0..n).step_by(side);
    starts(h)
        .flat_map(|y0| starts(w).map(move |x0| (y0, x0)))
        .map(|(y0, x0)| {
            let rows = y0..(y0 + side).min(h);
            rows.flat_map(|y| (x0..(x0 + side).min(w)).map(move |x| y * w + x)).collect()
        })
        .collect()
}

impl WindowPlan {
    /// Groups the windows of a frame pair of `h × w` merge blocks by length.
    pub fn new(h: usize, w: usize, side: usize) -> Self {
        let mut windows = windows(h, w, side);
        windows.sort_by_key(Vec::len);
        let mut groups: Vec<(usize, usize)> = Vec::new();
        for window in &windows {
            match groups.last_mut() {
                Some((len, count)) if *len == window.len() => *count += 1,
                _ => groups.push((window.len(), 1)),
            }
        }
        Self { order: windows.concat(), groups }
    }

    /// One window that holds the whole frame pair, in the processor's order.
    pub fn whole(blocks: usize) -> Self {
        Self { order: (0..blocks).collect(), groups: vec![(blocks, 1)] }
    }

    /// Where each merge block of the processor's order stands in this one.
    fn inverse(&self) -> Vec<usize> {
        let mut inverse = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(at, block)| inverse[*block] = at);
        inverse
    }
}

impl VisionTower {
    /// Tokens of one image or video: `pixel_values: [patches, patch_dim]` → `[patches / 4,
    /// hidden]`, in the processor's order. `observe` sees the patch embedding and each block's
    /// output, `[f, n, e]` in window order; pass `|_| ()`.
    pub fn forward(
        &self,
        config: &Config,
        pixel_values: Tensor<2>,
        grid_thw: [usize; 3],
        mut observe: impl FnMut(&Tensor<3>),
    ) -> Tensor<2> {
        let [f, h, w] = grid_thw;
        let (vision, window) = (&config.vision, config.window());
        let (merge, unit) = (vision.spatial_merge_size, vision.merge_unit());
        let (blocks_h, blocks_w) = (h / merge, w / merge);
        let plan = match window {
            Some(side) => WindowPlan::new(blocks_h, blocks_w, side),
            None => WindowPlan::whole(blocks_h * blocks_w),
        };
        let device = pixel_values.device();
        let rotary = Rotary::vision(
            vision.embed_dim / vision.num_heads,
            &patch_positions(&plan.order, blocks_w, merge),
            &device,
        );
        // Features are made with a tape for training alone, and only then are inputs dropped.
        let train = parameters::any_trained(self);
        let pixel_values = cast(pixel_values, self.patch_embed.proj.weight.dtype());
        let x = self.patch_embed.proj.forward(pixel_values, false);
        let e = x.dims()[1];
        let mut x = reorder(x.reshape([f, h * w, e]), &plan.order, unit, &device);
        observe(&x);
        let whole = [(h * w, 1)];
        let windows: Vec<_> = plan.groups.iter().map(|(len, count)| (len * unit, *count)).collect();
        for (i, block) in self.blocks.iter().enumerate() {
            let full = window.is_none() || vision.fullatt_block_indexes.contains(&i);
            x = block.forward(x, &rotary, if full { &whole } else { &windows }, train);
            observe(&x);
        }
        let y = self.merger.forward(x, unit, train);
        let hidden = y.dims()[2];
        reorder(y, &plan.inverse(), 1, &device).reshape([f * blocks_h * blocks_w, hidden])
    }
}

/// `(y, x)` of each patch when merge blocks come in `order`; a block's patches are row-major.
fn patch_positions(order: &[usize], blocks_w: usize, merge: usize) -> Vec<(usize, usize)> {
    let corner = |block: usize| (block / blocks_w * merge, block % blocks_w * merge);
    let within = |k: usize| (k / merge, k % merge);
    order
        .iter()
        .flat_map(|block| (0..merge * merge).map(move |k| (corner(*block), within(k))))
        .map(|((y, x), (dy, dx))| (y + dy, x + dx))
        .collect()
}

/// Reorders groups of `unit` rows in dimension 1 of `x: [f, groups·unit, e]`.
fn reorder(x: Tensor<3>, order: &[usize], unit: usize, device: &Device) -> Tensor<3> {
    if order.iter().enumerate().all(|(at, group)| at == *group) {
        return x;
    }
    let rows: Vec<i64> =
        order.iter().flat_map(|g| (0..unit).map(move |k| (g * unit + k) as i64)).collect();
    x.select(1, Tensor::<1, Int>::from_data(&rows[..], device))
}

impl VisionBlock {
    /// `x: [f, n, e]` → `[f, n, e]`; `segments` are `(patches, count)` runs of equal windows.
    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        segments: &[(usize, usize)],
        train: bool,
    ) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(self.norm1.forward(x), rotary, segments, train);
        x.clone() + self.mlp.forward(self.norm2.forward(x), train)
    }
}

impl VisionAttention {
    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        segments: &[(usize, usize)],
        train: bool,
    ) -> Tensor<3> {
        let [f, n, e] = x.dims();
        let d = rotary.head_dim();
        let qkv = self.qkv.forward(x, train);
        let part = |i: usize| qkv.clone().narrow(2, i * e, e).reshape([f, n, e / d, d]);
        let (q, k, v) = (rotary.apply(part(0)), rotary.apply(part(1)), part(2));
        let mut start = 0;
        let attended = segments.iter().map(|&(len, count)| {
            let windows = |x: &Tensor<4>| {
                let x = x.clone().narrow(1, start, len * count);
                x.reshape([f * count, len, e / d, d]).swap_dims(1, 2)
            };
            let y = attention(windows(&q), windows(&k), windows(&v), false);
            start += len * count;
            y.swap_dims(1, 2).reshape([f, len * count, e])
        });
        self.proj.forward(Tensor::cat(attended.collect(), 1), train)
    }
}

impl VisionMlp {
    fn forward(&self, x: Tensor<3>, train: bool) -> Tensor<3> {
        match self {
            Self::SwiGlu(mlp) => mlp.forward(x, train),
            Self::QuickGelu(mlp) => mlp.fc2.forward(quick_gelu(mlp.fc1.forward(x, train)), train),
        }
    }
}

/// Slope of the sigmoid in `x · sigmoid(1.702 x)`. Source: `QuickGELUActivation`.
pub const QUICK_GELU: f32 = 1.702;

/// `x · sigmoid(1.702 x)`, element by element.
fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if cpu::runs(&x) {
        return cpu::quick_gelu(x);
    }
    #[cfg(feature = "cuda")]
    if super::cuda::holds(&x) {
        return super::cuda::quick_gelu(x);
    }
    x.clone() * sigmoid(x.mul_scalar(QUICK_GELU))
}

impl Norm {
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

impl PatchMerger {
    /// `x: [f, n, e]` → `[f, n / unit, hidden]`. Source: Qwen2-VL §2.1, `PatchMerger`.
    fn forward(&self, x: Tensor<3>, unit: usize, train: bool) -> Tensor<3> {
        let [f, n, e] = x.dims();
        let x = self.ln_q.forward(x).reshape([f, n / unit, e * unit]);
        self.mlp.linear_2.forward(gelu(self.mlp.linear_0.forward(x, train)), train)
    }
}
