//! Facts → the phases of a run, with the memory and the arithmetic of each.

use crate::features::{AHEAD, IN_MEMORY, readers};
use crate::lanes;
use crate::model::attention::{SCORES_AT_ONCE, scores_at_once};
use crate::model::nf4;
use crate::model::rope::MediaGrid;
use crate::number::{size, thousands};
use crate::recipe::{Best, Part};
use crate::run::plan::facts::{Batch, Facts, Sequence, Together};
use crate::train::batches::tokens_at_once;
use crate::train::gradients::{GPU_MULTIPLE, LOGITS_AT_ONCE, padded_length};

/// What the program holds beside all that is counted: code, libraries, question files, and what the
/// allocator keeps of what was freed.
const BASE_BYTES: usize = 115 << 20;
/// What the allocator keeps of what one more thread frees.
const LANE_BYTES: usize = 40 << 20;
/// A question, each time that it stands in a list: of its set, its part, the samples or the rounds.
const QUESTION_BYTES: usize = 768;
/// Bytes in memory of one byte of `tokenizer.json`.
const TOKENIZER: usize = 8;

/// One part of a phase's memory.
pub struct Term {
    pub what: &'static str,
    pub bytes: usize,
    /// What makes it smaller.
    pub lower: &'static str,
}

/// A phase of a run.
pub struct Phase {
    pub name: &'static str,
    pub terms: Vec<Term>,
    /// Arithmetic.
    pub flops: f64,
    /// Bytes of weights that are read anew for each token of answers.
    pub reads: f64,
    /// Share of both that falls to the device that does most.
    pub share: f64,
    /// What is done how often.
    pub times: String,
}

/// Share of `pieces` of work that falls to the one of `devices` that does most.
fn share(pieces: usize, devices: usize) -> f64 {
    pieces.div_ceil(devices) as f64 / pieces.max(1) as f64
}

impl Phase {
    pub fn bytes(&self) -> usize {
        self.terms.iter().map(|term| term.bytes).sum()
    }

    /// Its terms, the largest first.
    fn by_size(&self) -> Vec<&Term> {
        let mut terms: Vec<&Term> = self.terms.iter().collect();
        terms.sort_by_key(|term| std::cmp::Reverse(term.bytes));
        terms
    }

    /// How much it needs, and most of it for what.
    pub fn describe(&self) -> String {
        let part = |term: &&Term| format!("{} {}", term.what, size(term.bytes as u64));
        let parts: Vec<String> = self.by_size().iter().take(4).map(part).collect();
        format!("{} in `{}`: {}", size(self.bytes() as u64), self.name, parts.join(", "))
    }

    /// What makes it smaller, what helps most first.
    pub fn lower(&self) -> String {
        let mut lower: Vec<&str> = Vec::new();
        let worth = self.bytes() / 100;
        for term in self.by_size().into_iter().filter(|term| term.bytes > worth) {
            if !term.lower.is_empty() && !lower.contains(&term.lower) {
                lower.push(term.lower);
            }
        }
        lower.join("; or ")
    }
}

impl Facts {
    fn tower_is_trained(&self) -> bool {
        [Part::Vision, Part::Merger].iter().any(|part| self.counts[part].trained > 0)
    }

    /// Bytes of what is kept of all that is shown: its features, or its frames where the tower is
    /// trained.
    fn kept(&self) -> usize {
        let of = |grid: &MediaGrid| match self.tower_is_trained() {
            true => grid.grid_thw.iter().product::<usize>() * self.config.vision.patch_dim(),
            false => grid.tokens(&self.config.vision) * self.config.text.hidden_size * self.width,
        };
        self.grids.iter().map(of).sum::<usize>().min(IN_MEMORY)
    }

    /// What every phase holds.
    fn held(&self) -> Vec<Term> {
        let trained: usize = self.counts.values().map(|count| count.trained).sum();
        let all: usize = self.counts.values().map(|count| count.all).sum();
        let adapter = if self.recipe.lora.is_some() { trained } else { 0 };
        let base = BASE_BYTES + TOKENIZER * self.tokenizer_bytes;
        // On a GPU they stay in the host's memory, which is not what is estimated.
        let samples =
            if self.on_cpu { self.sample_bytes + QUESTION_BYTES * self.listed } else { 0 };
        vec![
            Term { what: "program", bytes: base, lower: "" },
            Term { what: "samples", bytes: samples, lower: "lower data.max_questions" },
            Term {
                what: "weights",
                bytes: self.weight_bytes(all - adapter, |_| true) + 4 * adapter,
                lower: if self.width == 4 && !self.on_cpu {
                    "set model.dtype = \"bf16\""
                } else if self.recipe.lora.is_some() && self.quantised.is_empty() {
                    "set model.quantize = \"nf4\""
                } else {
                    "take a smaller model"
                },
            },
            Term { what: "a layer's weights", bytes: self.dequantised(), lower: "" },
        ]
    }

    /// Bytes of `all` weights of the parts that are `meant`, as they are held.
    fn weight_bytes(&self, all: usize, meant: impl Fn(Part) -> bool) -> usize {
        let quantised: usize = self.quantised_of(meant).sum();
        (all - quantised) * self.width + nf4::bytes(quantised)
    }

    /// Numbers of each quantised layer of the parts that are `meant`.
    fn quantised_of(&self, meant: impl Fn(Part) -> bool) -> impl Iterator<Item = usize> {
        self.quantised.iter().filter(move |(name, _)| meant(Part::of(name))).map(|(_, n)| *n)
    }

    /// Bytes of the largest quantised layer's numbers, where they exist all at once: on a GPU, and for
    /// the lengths of `DoRA`, which are taken in f32 from their squares.
    fn dequantised(&self) -> usize {
        let dora = self.recipe.lora.as_ref().is_some_and(|lora| lora.use_dora);
        let numbers = if dora || !self.on_cpu { self.width } else { 0 };
        let of_lengths = if dora { 4 + if self.width < 4 { 4 } else { 0 } } else { 0 };
        self.quantised.values().max().copied().unwrap_or(0) * (numbers + of_lengths)
    }

    /// Scores of a layer of the vision tower over the largest of what is shown.
    fn tower_scores(&self) -> usize {
        let seen =
            |grid: &MediaGrid| grid.grid_thw[0] * (grid.grid_thw[1] * grid.grid_thw[2]).pow(2);
        self.config.vision.num_heads * self.grids.iter().map(seen).max().unwrap_or(0)
    }

    /// What `scores` numbers of attention take at once on a GPU, where cuBLAS multiplies, as is
    /// assumed.
    fn scores_term(&self, scores: usize, copies: usize) -> Option<Term> {
        let bytes = copies * ((4 + self.width) * scores).min(SCORES_AT_ONCE / 2);
        (!self.on_cpu).then_some(Term { what: "attention's scores", bytes, lower: self.smaller })
    }

    pub fn phases(&self) -> Vec<Phase> {
        let (train, eval) = (&self.recipe.train, &self.recipe.eval);
        let new = eval.max_new_tokens();
        let mut phases = vec![self.reading()];
        if !self.asked.is_empty() {
            phases.push(self.asking("before", &self.asked, 1, new));
        }
        phases.push(self.training());
        if !self.validation.is_empty() {
            let course = self.course;
            let every = train.eval_steps.unwrap_or(course.steps_per_epoch);
            let times = course.steps.div_ceil(every);
            // The loss alone is measured without answers.
            let new = if train.best() == Best::Loss { 0 } else { new };
            phases.push(self.asking("validation", &self.validation, times, new));
        }
        if !self.asked.is_empty() {
            phases.push(self.asking("after", &self.asked, 1, new));
        }
        phases
    }

    /// Decoding and the vision tower; frames wait in memory for it.
    fn reading(&self) -> Phase {
        let vision = &self.config.vision;
        let patches = |grid: &MediaGrid| grid.grid_thw.iter().product::<usize>();
        let largest = self.grids.iter().map(patches).max().unwrap_or(0);
        let workers = readers();
        let waiting =
            workers * self.frames[0] + (workers + AHEAD).min(self.grids.len()) * self.frames[1];
        let tower = match self.tower_is_trained() {
            true => 0,
            false => largest * (2 * 4 * vision.patch_dim() + self.width * vision.block()),
        };
        let mut terms = self.held();
        terms.push(Term { what: "frames", bytes: waiting, lower: self.smaller });
        terms.push(Term { what: "vision tower", bytes: tower, lower: self.smaller });
        terms.extend(self.scores_term(self.tower_scores(), 1));
        terms.push(Term { what: "features", bytes: self.kept(), lower: self.smaller });
        let flops = match self.tower_is_trained() {
            true => 0.0,
            false => self.grids.iter().map(|grid| self.config.tower_flops(grid.grid_thw)).sum(),
        };
        let times = format!(
            "{} {}s of at most {} patches",
            thousands(self.grids.len()),
            self.medium,
            thousands(largest)
        );
        let share = share(self.grids.len(), self.devices);
        Phase { name: "reading", terms, flops, reads: 0.0, share, times }
    }

    /// Answers of at most `new` tokens to all of `asked`, `times` times.
    fn asking(&self, name: &'static str, asked: &[Batch], times: usize, new: usize) -> Phase {
        let config = &self.config.text;
        let answer = new as f64 * (config.forward_flops(1) + config.logits_flops());
        let group = |group: &Together| {
            let rest: f64 = group.rest.iter().map(|t| config.forward_flops(*t) + answer).sum();
            config.forward_flops(group.common) + rest
        };
        let groups = asked.iter().flat_map(|batch| &batch.0);
        let flops = times as f64 * groups.map(group).sum::<f64>();
        let size = self.recipe.eval.batch_size;
        let batches: usize = asked.iter().map(|batch| batch.prompts().div_ceil(size)).sum();
        let is_language = |part| part == Part::Language;
        let held = self.weight_bytes(self.counts[&Part::Language].all, is_language);
        // Those of quantised weights are written and read once more.
        let made: usize = 2 * self.width * self.quantised_of(is_language).sum::<usize>();
        let reads = (times * batches * new * (held + made)) as f64;
        let prompts = thousands(asked.iter().map(Batch::prompts).sum());
        let again = if times > 1 { format!("{times} × ") } else { String::new() };
        let times = format!("{again}{prompts} prompts, {new} new tokens at most");
        let share = share(asked.len(), self.devices);
        Phase { name, terms: self.answer_terms(asked, new), flops, reads, share, times }
    }

    /// What is held for answers of at most `new` tokens to each batch of `asked`.
    fn answer_terms(&self, asked: &[Batch], new: usize) -> Vec<Term> {
        let (config, size) = (&self.config.text, self.recipe.eval.batch_size);
        let lower = if size > 1 { "lower eval.batch_size" } else { self.smaller };
        let most = |of: &dyn Fn(&Batch) -> usize| asked.iter().map(of).max().unwrap_or(0);
        let rows = |batch: &Batch| batch.prompts().min(size);
        let mut terms = self.held();
        let cached = most(&|batch| batch.common() + rows(batch) * (batch.longest() + new));
        // On a GPU the questions of a group are read behind a trunk for each, layer by layer.
        let copied = if self.on_cpu { 0 } else { most(&|batch| batch.with_trunks(size)) };
        let of_layer = config.cache() / config.num_hidden_layers;
        let bytes = self.width * (cached * config.cache() + copied * of_layer);
        terms.push(Term { what: "keys and values", bytes, lower });
        let at_once = most(&|batch| batch.most_common().max(rows(batch) * batch.longest()));
        let bytes = self.width * at_once * config.tape();
        terms.push(Term { what: "activations", bytes, lower });
        let common = most(&Batch::most_common);
        terms.extend(self.scores_term(config.num_attention_heads * common * common, 1));
        let bytes = 3 * 4 * most(&rows) * config.vocab_size;
        terms.push(Term { what: "logits", bytes, lower });
        let bytes = self.kept() + self.width * most(&Batch::common) * config.hidden_size;
        terms.push(Term { what: "features", bytes, lower: self.smaller });
        terms
    }

    fn training(&self) -> Phase {
        let train = &self.recipe.train;
        let lanes = lanes::number(1, self.in_f32_on_cpu(), train.samples_per_step());
        let mut terms = self.held();
        let kept = (lanes - 1) * LANE_BYTES;
        terms.push(Term { what: "the second sample's thread", bytes: kept, lower: "" });
        terms.extend(self.learned_terms(lanes));
        terms.push(Term { what: "features", bytes: self.kept(), lower: self.smaller });
        terms.extend(self.pass_terms(lanes));
        terms.extend(self.tower_term(lanes));
        let (steps, samples) = (thousands(self.course.steps), train.samples_per_step());
        let share = share(samples, self.devices);
        let times = format!("{steps} steps of {samples} samples");
        Phase { name: "training", terms, flops: self.training_flops(), reads: 0.0, share, times }
    }

    fn in_f32_on_cpu(&self) -> bool {
        self.on_cpu && self.width == 4
    }

    /// What is held for each number that is trained.
    fn learned_terms(&self, lanes: usize) -> Vec<Term> {
        const ADAPTER: &str = "train an adapter: add [lora]";
        let (text, full) = (&self.config.text, self.recipe.lora.is_none());
        let trained: usize = self.counts.values().map(|count| count.trained).sum();
        // In bf16 the f32 values of a model's own weights, and on a GPU an adapter's, scaled.
        let copy = match &self.recipe.lora {
            None if self.width < 4 => 4,
            Some(lora) if !self.on_cpu && !lora.use_dora => self.width,
            _ => 0,
        };
        let mut terms = vec![Term {
            what: "gradients and moments",
            bytes: trained * (2 * 4 + lanes * 4 + copy),
            lower: if full { ADAPTER } else { "lower lora.r" },
        }];
        if full && self.counts[&Part::Language].trained > 0 {
            let bytes = lanes * 2 * 4 * text.vocab_size * text.hidden_size;
            terms.push(Term { what: "the embedding's gradient", bytes, lower: ADAPTER });
        }
        terms
    }

    /// What the passes through the language model hold.
    fn pass_terms(&self, lanes: usize) -> Vec<Term> {
        let (text, train) = (&self.config.text, &self.recipe.train);
        let multiple = if self.in_f32_on_cpu() { 1 } else { GPU_MULTIPLE };
        let padded = |s: &Sequence| padded_length(s.tokens, multiple);
        let longest = self.training.iter().map(padded).max().unwrap_or(0);
        let labels = self.training.iter().map(|s| s.labels).max().unwrap_or(0);
        let layers = text.num_hidden_layers;
        // Of what goes through the model together: samples, and tokens of all.
        let (joined, tokens) = if self.in_f32_on_cpu() || self.tower_is_trained() {
            (1, longest)
        } else {
            let step = train.samples_per_step().div_ceil(self.devices);
            let free = tokens_at_once(text, train.recompute, self.width).min(longest * step);
            (step, free.max(longest * train.batch_size))
        };
        let mut terms = Vec::new();
        let tape = lanes * self.width * tokens * text.tape();
        if train.recompute {
            let lower = match joined > 1 && train.batch_size > 1 {
                true => "lower train.batch_size, and raise train.grad_accum by as much",
                false => self.smaller,
            };
            let inputs = lanes * self.width * tokens * layers * text.hidden_size;
            terms.push(Term { what: "layer inputs", bytes: inputs, lower });
            let layer = "one layer and its gradients";
            terms.push(Term { what: layer, bytes: 2 * tape, lower });
        } else {
            let lower = "set train.recompute = true";
            terms.push(Term { what: "activations", bytes: (layers + 1) * tape, lower });
        }
        let (heads, kv) = (text.num_attention_heads, text.num_key_value_heads);
        let fit = scores_at_once(heads / kv * longest, longest, self.width) > 0;
        let composed = if self.on_cpu { self.width < 4 } else { self.width == 4 && !fit };
        if composed {
            // In f32: scores, weights, and the gradients of both; weights once more for the product.
            let at_once = if train.recompute { 1 } else { layers };
            let scores = text.scores(longest) * tokens.div_ceil(longest.max(1));
            let bytes = at_once * 4 * (4 + usize::from(self.width < 4)) * scores;
            terms.push(Term { what: "attention's scores", bytes, lower: self.smaller });
        } else {
            let tower = if self.tower_is_trained() { self.tower_scores() } else { 0 };
            terms.extend(self.scores_term(tower.max(heads * longest * tokens), 2));
        }
        let logits = (joined * labels * text.vocab_size).min(LOGITS_AT_ONCE.max(text.vocab_size));
        terms.push(Term { what: "logits", bytes: lanes * 3 * 4 * logits, lower: self.smaller });
        terms
    }

    /// What a pass through the vision tower holds, where it is trained.
    fn tower_term(&self, lanes: usize) -> Option<Term> {
        let vision = &self.config.vision;
        let tokens = self.training.iter().map(|s| s.media_tokens).max().unwrap_or(0);
        let of_patch =
            2 * 4 * vision.patch_dim() + self.width * (self.config.tower_tape() + vision.block());
        self.tower_is_trained().then(|| Term {
            what: "vision tower",
            bytes: lanes * tokens * vision.merge_unit() * of_patch,
            lower: "freeze the vision tower",
        })
    }

    fn training_flops(&self) -> f64 {
        let (text, train) = (&self.config.text, &self.recipe.train);
        let samples = self.course.steps * train.samples_per_step();
        // Gradients with respect to inputs, and where weights are trained to them too.
        let backward = if self.recipe.lora.is_some() { 1.0 } else { 2.0 };
        let passes = 1.0 + backward + f64::from(u8::from(train.recompute));
        let of = |s: &Sequence| {
            passes * text.forward_flops(s.tokens)
                + (1.0 + backward) * s.labels as f64 * text.logits_flops()
        };
        let mean = self.training.iter().map(of).sum::<f64>() / self.training.len() as f64;
        let tower = if self.tower_is_trained() {
            let all: f64 =
                self.grids.iter().map(|grid| self.config.tower_flops(grid.grid_thw)).sum();
            (1.0 + 2.0 * backward) * all / self.grids.len().max(1) as f64
        } else {
            0.0
        };
        samples as f64 * (mean + tower)
    }
}
