//! Parameters by name: what is trained, its gradients and its values.
//!
//! Names are the hub's (`model.layers.0.self_attn.q_proj.weight`); an adapter's are those of its
//! layer with `.lora_A.weight`, `.lora_B.weight` and `.lora_magnitude_vector`. Tensors leave flat, in
//! burn's layout, which for matrices is the transpose of the hub's.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Tensor};
use sha2::{Digest, Sha256};

use super::host::{data, resident};
use super::linear::{Weight, cast};
use super::nf4::Nf4;
use super::qwen_vl::QwenVl;
use crate::error::{Error, Result};
use crate::hash::hex;
use crate::recipe::Part;

/// Flat tensors by parameter name.
pub type Named = BTreeMap<String, Tensor<1>>;

/// A parameter's name, shape (burn's layout) and whether it is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Hub name.
    pub name: String,
    /// Shape in burn's layout.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub trained: bool,
}

impl Parameter {
    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Part {
    /// The part of the model that a parameter or layer belongs to, by its hub name.
    pub fn of(hub_name: &str) -> Self {
        match hub_name {
            name if name.starts_with("visual.merger.") => Self::Merger,
            name if name.starts_with("visual.") => Self::Vision,
            _ => Self::Language,
        }
    }
}

/// All parameters of `module`.
pub fn list(module: &impl Module) -> Vec<Parameter> {
    let mut found = Vec::new();
    visit(module, |name, _, shape, trained| found.push(Parameter { name, shape, trained }));
    found
}

/// Whether anything in `module` is trained.
pub fn any_trained(module: &impl Module) -> bool {
    let mut any = AnyTrained(false);
    module.visit(&mut any);
    any.0
}

/// Without names and values, as it is asked for each layer of each step.
struct AnyTrained(bool);

impl ModuleVisitor for AnyTrained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.is_require_grad();
    }
}

/// Shape (burn's layout) and value of every parameter, without autodiff.
pub fn values(module: &impl Module) -> BTreeMap<String, (Vec<usize>, Tensor<1>)> {
    let mut values = BTreeMap::new();
    visit(module, |name, value, shape, _| {
        values.insert(name, (shape, value));
    });
    values
}

/// How many numbers a part of a model has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartCount {
    /// All of them, an adapter's too.
    pub all: usize,
    /// Those that are trained.
    pub trained: usize,
}

/// How many numbers each part of a model has.
pub fn count_by_part(model: &QwenVl) -> BTreeMap<Part, PartCount> {
    let mut counts = BTreeMap::<Part, PartCount>::new();
    for parameter in list(model) {
        let count = counts.entry(Part::of(&parameter.name)).or_default();
        count.all += parameter.count();
        count.trained += if parameter.trained { parameter.count() } else { 0 };
    }
    for (name, weight) in quantised(model) {
        counts.entry(Part::of(&name)).or_default().all += weight.shape().iter().product::<usize>();
    }
    counts
}

/// The weights of `model` that are held in four bits, by their layers' hub names. They are no
/// parameters in burn's sense: what visits a module's does not see them.
pub fn quantised(model: &QwenVl) -> BTreeMap<String, Nf4> {
    let mut model = model.clone();
    let layers = model.linear_layers_mut().into_iter();
    let found = layers.filter_map(|(name, layer)| match &layer.weight {
        Weight::Nf4(weight) => Some((name, weight.clone())),
        Weight::Dense(_) => None,
    });
    found.collect()
}

/// The values of what is trained, without autodiff.
pub fn trained_values(module: &impl Module) -> Named {
    let mut values = Named::new();
    visit(module, |name, value, _, trained| {
        if trained {
            values.insert(name, value);
        }
    });
    values
}

/// What tells each parameter of `module` from another: shape, type and SHA-256 of its bytes.
///
/// # Errors
/// Where the device fails.
pub fn fingerprints(module: &impl Module) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    visit(module, |name, value, shape, _| {
        let fingerprint = data(value).map(|data| {
            format!("{shape:?} {:?} {}", data.dtype(), hex(&Sha256::digest(data.as_bytes())))
        });
        found.insert(name, fingerprint);
    });
    found.into_iter().map(|(name, fingerprint)| Ok((name, fingerprint?))).collect()
}

/// Moves the gradients of `module`'s parameters out of `gradients`, adding them to `sums` in f32.
pub fn add_gradients(
    module: &impl Module,
    prefix: &str,
    gradients: &mut Gradients,
    sums: &mut Named,
) {
    let mut visitor = Visitor { path: NamePath::new(prefix), on: Collect { gradients, sums } };
    module.visit(&mut visitor);
}

/// Adds `value` to what `sums` has under `name`.
pub fn add(sums: &mut Named, name: String, value: Tensor<1>) {
    let sum = match sums.remove(&name) {
        Some(sum) => sum + value,
        None => value,
    };
    sums.insert(name, sum);
}

/// Replaces each trained parameter by what `new` makes of its name and flat value, which the module
/// holds no more then.
pub fn replace<M: Module>(module: M, new: impl FnMut(&str, Tensor<1>) -> Tensor<1>) -> M {
    module.map(&mut Mapper { path: NamePath::new(""), new })
}

/// The model, in training form, once more on `device`, by way of the host: what burn itself copies
/// between GPUs takes NCCL where there is one, and waits for ever where that fails.
///
/// # Errors
/// Where a device fails.
pub fn copied(model: &QwenVl, device: &Device) -> Result<QwenVl> {
    let mut copier = Copier { device, failed: None };
    let mut copy = model.clone().map(&mut copier);
    for (_, layer) in copy.linear_layers_mut() {
        if let Weight::Nf4(weight) = &mut layer.weight {
            *weight = weight.on(device)?;
        }
    }
    copier.failed.map_or(Ok(copy), Err)
}

/// Copies each parameter; of a device that fails, what was there before stays, and the error.
struct Copier<'a> {
    device: &'a Device,
    failed: Option<Error>,
}

impl ModuleMapper for Copier<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trained = param.is_require_grad();
        param.map(|value| match data(value.clone().inner()) {
            Ok(data) => {
                let dtype = data.dtype();
                let copy: Tensor<D> = resident(data, self.device, dtype).autodiff();
                if trained { copy.require_grad() } else { copy }
            }
            Err(e) => {
                self.failed = Some(e);
                value
            }
        })
    }
}

fn visit(module: &impl Module, see: impl FnMut(String, Tensor<1>, Vec<usize>, bool)) {
    module.visit(&mut Visitor { path: NamePath::new(""), on: See(see) });
}

/// The names on the way to the current parameter.
struct NamePath(Vec<String>);

impl NamePath {
    fn new(prefix: &str) -> Self {
        Self(if prefix.is_empty() { vec![] } else { vec![prefix.to_owned()] })
    }

    fn enter(&mut self, name: &str, container: &str) {
        // An enum's variant is no level of the hub's names; a `Sequential` counts its members.
        let name = if container.starts_with("Enum") { "" } else { name };
        self.0.push(name.trim_start_matches("linear_").to_owned());
    }

    fn hub_name(&self) -> String {
        let parts: Vec<&str> =
            self.0.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
        let name = parts.join(".");
        name.replace(".lora.lora_a", ".lora_A.weight")
            .replace(".lora.lora_b", ".lora_B.weight")
            .replace(".lora.magnitude", ".lora_magnitude_vector")
    }
}

/// What a [`Visitor`] does with each parameter.
trait OnParameter {
    fn parameter<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>);
}

struct Visitor<O> {
    path: NamePath,
    on: O,
}

impl<O: OnParameter> ModuleVisitor for Visitor<O> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.on.parameter(self.path.hub_name(), param);
    }
}

struct See<F>(F);

impl<F: FnMut(String, Tensor<1>, Vec<usize>, bool)> OnParameter for See<F> {
    fn parameter<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
        let value = param.val();
        let (shape, trained) = (value.dims().to_vec(), value.is_require_grad());
        (self.0)(name, value.inner().flatten(0, D - 1), shape, trained);
    }
}

struct Collect<'a> {
    gradients: &'a mut Gradients,
    sums: &'a mut Named,
}

impl OnParameter for Collect<'_> {
    fn parameter<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.val().grad_remove(self.gradients) else { return };
        let gradient: Tensor<1> = cast(gradient.flatten(0, D - 1), DType::F32);
        add(self.sums, name, gradient);
    }
}

struct Mapper<F> {
    path: NamePath,
    new: F,
}

impl<F: FnMut(&str, Tensor<1>) -> Tensor<1>> ModuleMapper for Mapper<F> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        param.map(|value| {
            let shape = value.dims();
            let new = (self.new)(&self.path.hub_name(), value.inner().flatten(0, D - 1));
            new.reshape(shape).autodiff().require_grad()
        })
    }
}
