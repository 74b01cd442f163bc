//! The whole model, as separate steps with plain data between them: patches → vision features →
//! prompt embedding → hidden states → logits.
//!
//! Letters: `t` tokens, `v` vision tokens, `n` rows.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

use super::config::Config;
#[cfg(feature = "cuda")]
use super::cuda;
use super::kv_cache::KvCache;
use super::language::{Context, LanguageModel};
use super::linear::{Linear, product};
use super::rope::{MediaGrid, Positions, Rotary};
use super::vision::{VisionMlp, VisionTower};
use crate::error::{Error, Result};
use crate::recipe::Part;

/// A Qwen2-VL or Qwen2.5-VL model.
#[derive(Module, Debug)]
pub struct QwenVl {
    /// Patches → tokens.
    pub visual: VisionTower,
    /// Tokens → hidden states.
    pub model: LanguageModel,
    /// Hidden states → logits; none where the embedding is used for it.
    pub lm_head: Option<Linear>,
    /// The checkpoint's architecture.
    #[module(skip)]
    pub config: Config,
}

impl QwenVl {
    /// Where the weights are, without autodiff.
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device().inner()
    }

    /// The model with every weight trained but those of the parts `frozen`.
    pub fn train_all_but(mut self, frozen: &[Part]) -> Self {
        let trained = |part: Part| !frozen.contains(&part);
        let visual = &mut self.visual;
        visual.patch_embed = visual.patch_embed.clone().set_require_grad(trained(Part::Vision));
        visual.blocks = visual.blocks.clone().set_require_grad(trained(Part::Vision));
        visual.merger = visual.merger.clone().set_require_grad(trained(Part::Merger));
        self.model = self.model.set_require_grad(trained(Part::Language));
        self.lm_head = self.lm_head.map(|head| head.set_require_grad(trained(Part::Language)));
        self
    }

    /// The model for answers alone: its adapters are not trained any more.
    pub fn for_inference(&self) -> Self {
        let mut model = self.clone();
        model.linear_layers_mut().into_iter().for_each(|(_, layer)| layer.for_inference());
        model
    }

    /// The model for one optimiser step: what all its samples share of the adapters is made once.
    #[cfg(feature = "cuda")]
    pub fn for_step(&self) -> Self {
        let mut model = self.clone();
        if cuda::is(&model.device()) {
            let layers = model.linear_layers_mut().into_iter();
            layers.for_each(|(_, layer)| layer.keep_factors());
        }
        model
    }

    /// Every linear layer that can carry an adapter, with its hub name.
    pub fn linear_layers_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut layers = Vec::new();
        for (i, block) in self.visual.blocks.iter_mut().enumerate() {
            let name = |part: &str| format!("visual.blocks.{i}.{part}");
            layers.push((name("attn.qkv"), &mut block.attn.qkv));
            layers.push((name("attn.proj"), &mut block.attn.proj));
            match &mut block.mlp {
                VisionMlp::QuickGelu(mlp) => {
                    layers.push((name("mlp.fc1"), &mut mlp.fc1));
                    layers.push((name("mlp.fc2"), &mut mlp.fc2));
                }
                VisionMlp::SwiGlu(mlp) => layers.extend(mlp.linear_layers_mut(&name("mlp"))),
            }
        }
        layers.push(("visual.merger.mlp.0".into(), &mut self.visual.merger.mlp.linear_0));
        layers.push(("visual.merger.mlp.2".into(), &mut self.visual.merger.mlp.linear_2));
        for (i, layer) in self.model.layers.iter_mut().enumerate() {
            layers.extend(layer.linear_layers_mut(&format!("model.layers.{i}")));
        }
        layers.extend(self.lm_head.as_mut().map(|head| ("lm_head".to_owned(), head)));
        layers
    }

    /// Vision features of one image or video: `pixel_values`, `[patches, patch_dim]` row by row,
    /// → `[v, hidden]`.
    pub fn features(&self, pixel_values: &[f32], grid_thw: [usize; 3]) -> Tensor<2> {
        let patches = grid_thw.iter().product();
        let shape = [patches, self.config.vision.patch_dim()];
        let data = TensorData::new(pixel_values.to_vec(), shape);
        let pixel_values = Tensor::from_data(data, &self.device());
        self.visual.forward(&self.config, pixel_values, grid_thw, |_| ())
    }

    /// Token embeddings as they stand, media pads too: `input_ids: [t]` → `[t, hidden]`.
    pub fn embed_text(&self, input_ids: &[u32]) -> Tensor<2> {
        let ids: Vec<i64> = input_ids.iter().map(|id| i64::from(*id)).collect();
        self.model.embed_tokens.forward(Tensor::from_data(&ids[..], &self.device()))
    }

    /// Token embeddings with each run of media pads replaced by its features, in order:
    /// `input_ids: [t]`, `features: [v, hidden]` each → `[1, t, hidden]`.
    ///
    /// # Errors
    /// Where pads and features do not agree.
    pub fn embed(&self, input_ids: &[u32], features: &[Tensor<2>]) -> Result<Tensor<3>> {
        let is_pad = |id: u32| id == self.config.image_token_id || id == self.config.video_token_id;
        let embedded = self.embed_text(input_ids);
        let (mut pieces, mut at) = (Vec::new(), 0);
        for feature in features {
            let pads = input_ids[at..].iter().position(|id| is_pad(*id));
            let start = at + pads.ok_or_else(features_disagree)?;
            let end = start + feature.dims()[0];
            if end > input_ids.len() || !input_ids[start..end].iter().all(|id| is_pad(*id)) {
                return Err(features_disagree());
            }
            if start > at {
                pieces.push(embedded.clone().narrow(0, at, start - at));
            }
            pieces.push(feature.clone());
            at = end;
        }
        if input_ids[at..].iter().any(|id| is_pad(*id)) {
            return Err(features_disagree());
        }
        if at < input_ids.len() {
            pieces.push(embedded.narrow(0, at, input_ids.len() - at));
        }
        Ok(Tensor::cat(pieces, 0).unsqueeze())
    }

    /// What all layers share for a batch of rows of equal length at these positions; `train`
    /// switches dropout on.
    pub fn context(&self, batch: &[Positions], train: bool) -> Context {
        Context { rotary: Rotary::text(&self.config.text, batch, &self.device()), train }
    }

    /// Hidden states after the final norm of one whole prompt, `[1, t, hidden]`, and the prompt's
    /// positions.
    ///
    /// # Errors
    /// Where the media pads of `input_ids` do not agree with `media` and `features`.
    pub fn forward(
        &self,
        input_ids: &[u32],
        media: &[MediaGrid],
        features: &[Tensor<2>],
        cache: Option<&mut KvCache>,
    ) -> Result<(Tensor<3>, Positions)> {
        let positions = Positions::new(&self.config, input_ids, media)?;
        let x = self.embed(input_ids, features)?;
        let context = self.context(std::slice::from_ref(&positions), false);
        Ok((self.model.forward(x, &context, cache), positions))
    }

    /// `hidden: [n, hidden]` → `[n, vocab]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.head(hidden, false)
    }

    /// As [`logits`](Self::logits); `train` switches dropout on.
    pub fn head(&self, hidden: Tensor<2>, train: bool) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden, train),
            None => product(hidden, self.model.embed_tokens.weight.val().transpose(), None),
        }
    }
}

fn features_disagree() -> Error {
    Error::input("the prompt's video or image tokens do not agree with the vision features")
}
