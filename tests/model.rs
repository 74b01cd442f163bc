//! Every stage of the model against HF transformers, for both families.

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::Dtype;
use serde_json::{Value, json};
use vlm4d_train::model::config::{Config, Family};
use vlm4d_train::model::rope::{MediaGrid, Positions};
use vlm4d_train::model::tensor_files::{Outline, TensorFiles, write_file};
use vlm4d_train::model::{vision, weights};
use vlm4d_train::train::loss::{cross_entropy, predictions, total};

use crate::support::model::{Row, load, media, rows, values};
use crate::support::{CHECKPOINTS, Golden, golden, json, max_difference};

const CASES: [&str; 7] = ["text", "image", "video", "video_win", "video_long", "mixed", "batch"];
/// f32 on two machines differs by up to 2.5e-5 in the logits.
const LOGITS: f32 = 2e-4;

fn names(value: &Value) -> Vec<String> {
    let list = value.as_array().unwrap().iter();
    list.map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn case_rows(config: &Config, name: &str, case: &str) -> (Golden, Vec<Row>) {
    let batch = Golden::read(&format!("{name}/forward_{case}.safetensors"));
    let meta = &json(&format!("{name}/summary.json"))["forward"][case];
    let rows = rows(config, &batch, (&names(&meta["images"]), &names(&meta["videos"])));
    (batch, rows)
}

/// Columns `range` of row-major `values`, whose rows have `width` numbers.
fn cut(values: &[f32], range: &std::ops::Range<usize>, width: usize) -> Vec<f32> {
    values[range.start * width..range.end * width].to_vec()
}

#[test]
fn scaled_positions_are_refused() {
    let text = std::fs::read_to_string(golden("ckpt/tiny-qwen2.5-vl/config.json")).unwrap();
    let config = |key: &str, value: &str| {
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json["rope_scaling"][key] = value.into();
        Config::from_json(&json)
    };
    for (key, value) in [("type", "mrope"), ("type", "default"), ("rope_type", "default")] {
        assert!(config(key, value).is_ok(), "{key} {value}");
    }
    for key in ["type", "rope_type"] {
        let what = config(key, "yarn").unwrap_err();
        assert!(what.starts_with("`rope_scaling` is of type \"yarn\""), "{what}");
    }
}

#[test]
fn what_is_not_computed_is_refused() {
    for (name, act) in [("tiny-qwen2-vl", "quick_gelu"), ("tiny-qwen2.5-vl", "silu")] {
        let text = std::fs::read_to_string(golden(&format!("ckpt/{name}/config.json"))).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let with = |pointer: &str, key: &str, value: Value| {
            let mut json = json.clone();
            json.pointer_mut(pointer).unwrap()[key] = value;
            Config::from_json(&json).err()
        };
        let vision = |key: &str, value: Value| with("/vision_config", key, value);
        let theta = |theta: f64| vision("rope_parameters", json!({"rope_theta": theta}));
        let accepted = [
            with("", "hidden_act", "swish".into()),
            vision("hidden_act", act.into()),
            vision("in_chans", 1.into()),
            vision("window_size", 28.into()),
            theta(10_000.0),
        ];
        assert!(accepted.iter().all(Option::is_none), "{accepted:?}");
        let gelu = with("", "hidden_act", "gelu".into()).unwrap();
        assert_eq!(gelu, "`hidden_act` is \"gelu\", only `silu` is supported");
        for (what, wanted) in [
            (
                vision("hidden_act", "gelu".into()),
                format!("is \"gelu\", only `{act}` is supported"),
            ),
            (vision("in_channels", 1.into()), "`in_channels` is 1, and ".into()),
            (theta(500.0), "`rope_theta` is 500, only 10000 is supported".into()),
        ] {
            let what = what.unwrap();
            assert!(what.starts_with("`vision_config`: ") && what.contains(&wanted), "{what}");
        }
        let small = vision("window_size", 27.into());
        assert_eq!(small.is_some(), name == "tiny-qwen2.5-vl", "{small:?}");
    }
}

/// As `Qwen2_5_VLTextConfig` and `Qwen2_5_VLVisionConfig` of transformers 4.57 and 5.23.
#[test]
fn missing_keys_have_the_defaults_of_transformers() {
    let text = std::fs::read_to_string(golden("ckpt/tiny-qwen2.5-vl/config.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().remove("rms_norm_eps").unwrap();
    json["vision_config"] = Value::Object(serde_json::Map::new());
    let config = Config::from_json(&json).unwrap();
    assert_eq!(config.text.rms_norm_eps, 1e-5);
    let vision = config.vision;
    assert_eq!((vision.embed_dim, vision.intermediate_size, vision.depth), (3584, 3420, 32));
    assert_eq!((vision.window_size, vision.tokens_per_second), (112, 4.0));
    // 8 does not divide the 4 heads; null is as many as these.
    json.as_object_mut().unwrap().remove("num_key_value_heads").unwrap();
    let what = Config::from_json(&json).unwrap_err();
    assert!(what.starts_with("`num_key_value_heads` (8) does not divide"), "{what}");
    json["num_key_value_heads"] = Value::Null;
    assert_eq!(Config::from_json(&json).unwrap().text.num_key_value_heads, 4);
}

/// As transformers 5.23 reads them.
#[test]
fn nested_keys_are_those_of_the_language_model() {
    let path = golden("shapes/qwen2_5_vl_nested_tied_bf16/config.json");
    let text = std::fs::read_to_string(path).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let read = |change: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        change(&mut json);
        Config::from_json(&json).unwrap()
    };
    let outer = read(&|json| {
        let text = json["text_config"].as_object_mut().unwrap();
        text.remove("rms_norm_eps").unwrap();
        text["rope_parameters"].as_object_mut().unwrap().remove("rope_theta").unwrap();
        json["rms_norm_eps"] = 0.5.into();
        json["rope_theta"] = 500.0.into();
    });
    assert_eq!((outer.text.rms_norm_eps, outer.text.rope_theta), (1e-5, 1e6));
    let both = read(&|json| {
        json["text_config"]["rope_scaling"] = json!({"type": "mrope", "mrope_section": [2, 1, 1]});
    });
    assert_eq!(both.text.mrope_section, [2, 1, 1]);
    for (outer, inner, tied) in
        [(true, false, true), (false, true, true), (false, false, false), (true, true, true)]
    {
        let config = read(&|json| {
            json["tie_word_embeddings"] = outer.into();
            json["text_config"]["tie_word_embeddings"] = inner.into();
        });
        assert_eq!(config.tie_word_embeddings, tied, "{outer} {inner}");
    }
}

#[test]
fn positions_equal_the_original_rule() {
    for name in CHECKPOINTS {
        let config = Config::from_dir(&golden(&format!("ckpt/{name}"))).unwrap();
        for case in CASES {
            let (batch, rows) = case_rows(&config, name, case);
            let (want, shape) = batch.i64("position_ids");
            let total = shape[1] * shape[2];
            for (b, row) in rows.iter().enumerate() {
                let got = Positions::new(&config, &row.input_ids, &row.grids()).unwrap();
                for axis in 0..3 {
                    let range = axis * total + row.range.start..axis * total + row.range.end;
                    assert_eq!(got.rows[axis], want[range], "{name} {case} row {b} axis {axis}");
                }
                let delta = batch.i64("rope_deltas_unpadded").0[b];
                assert_eq!(got.rope_delta(), delta, "{name} {case} row {b}");
            }
        }
    }
}

#[test]
fn positions_follow_fractional_seconds() {
    let config = Config::from_dir(&golden("ckpt/tiny-qwen2.5-vl")).unwrap();
    let file = Golden::read("tiny-qwen2.5-vl/positions_fractional.safetensors");
    let ids: Vec<u32> = file.i64("input_ids").0.iter().map(|i| *i as u32).collect();
    let grid: Vec<usize> = file.i64("video_grid_thw").0.iter().map(|i| *i as usize).collect();
    for seconds in ["0.5", "0.75", "1.0", "1.5", "2.002"] {
        let second_per_grid = Some(seconds.parse().unwrap());
        let media = MediaGrid { grid_thw: grid.clone().try_into().unwrap(), second_per_grid };
        let got = Positions::new(&config, &ids, &[media]).unwrap();
        let want = file.i64(&format!("position_ids.sec_{seconds}")).0;
        assert_eq!(got.rows.concat(), want, "{seconds} s");
    }
}

/// `(torch.arange(t) * seconds * 2).long()`, which multiplies in f32.
#[test]
fn positions_in_time_are_rounded_as_the_reference_rounds() {
    let config = Config::from_dir(&golden("ckpt/tiny-qwen2.5-vl")).unwrap();
    for (seconds, index, want) in
        [(1.06, 25, 52), (0.7, 45, 63), (1.15, 50, 115), (1.3, 45, 116), (31.0 / 30.0, 15, 31)]
    {
        let (t, second_per_grid) = (index + 1, Some(seconds));
        let media = MediaGrid { grid_thw: [t, 2, 2], second_per_grid };
        let got = Positions::new(&config, &vec![config.video_token_id; t], &[media]).unwrap();
        assert_eq!(got.rows[0][index], want, "{seconds} s, {index}");
    }
}

#[test]
fn windows_equal_the_reference() {
    let config = Config::from_dir(&golden("ckpt/tiny-qwen2.5-vl")).unwrap();
    let file = Golden::read("tiny-qwen2.5-vl/vision_internals.safetensors");
    let side = config.vision.window_size / 28;
    for name in ["vid_odd", "vid_win", "img_a"] {
        let [t, h, w] = media(name).grid_thw;
        let frame = h / 2 * (w / 2);
        let windows = vision::windows(h / 2, w / 2, side);
        let index: Vec<i64> = (0..t)
            .flat_map(|t| windows.concat().into_iter().map(move |b| (t * frame + b) as i64))
            .collect();
        assert_eq!(index, file.i64(&format!("{name}.window_index")).0, "{name}");
        let lengths = (0..t).flat_map(|_| windows.iter().map(|w| 4 * w.len() as i64));
        let ends: Vec<i64> = std::iter::once(0)
            .chain(lengths.scan(0, |sum, n| {
                *sum += n;
                Some(*sum)
            }))
            .collect();
        assert_eq!(ends, file.i64(&format!("{name}.cu_window_seqlens")).0, "{name}");
    }
}

/// Rows of `x: [f, n, e]` in the processor's order.
fn unwindowed(x: &Tensor<3>, order: &[usize]) -> Vec<f32> {
    let [f, n, e] = x.dims();
    let flat = values(x.clone());
    let mut out = vec![0.0; flat.len()];
    for (frame, (at, block)) in (0..f).flat_map(|f| order.iter().enumerate().map(move |o| (f, o))) {
        let (from, to) = ((frame * n + at * 4) * e, (frame * n + block * 4) * e);
        out[to..to + 4 * e].copy_from_slice(&flat[from..from + 4 * e]);
    }
    out
}

/// The reference's block outputs stand in window order: puts merge blocks back.
fn in_processor_order(want: &[f32], grids: &[[usize; 3]], side: Option<usize>) -> Vec<f32> {
    let Some(side) = side else { return want.to_vec() };
    let patches: usize = grids.iter().map(|g| g.iter().product::<usize>()).sum();
    let (e, mut out, mut start) = (want.len() / patches, vec![0.0; want.len()], 0);
    for [t, h, w] in grids {
        let order = vision::windows(h / 2, w / 2, side).concat();
        for (frame, (at, block)) in
            (0..*t).flat_map(|f| order.iter().enumerate().map(move |o| (f, o)))
        {
            let (from, to) = (start + frame * h * w + at * 4, start + frame * h * w + block * 4);
            out[to * e..(to + 4) * e].copy_from_slice(&want[from * e..(from + 4) * e]);
        }
        start += t * h * w;
    }
    out
}

#[test]
fn vision_stages_equal_the_reference() {
    for name in CHECKPOINTS {
        let model = load(name);
        let side = model.config.window();
        for case in CASES {
            let (batch, rows) = case_rows(&model.config, name, case);
            let all: Vec<_> = rows.iter().flat_map(|row| row.media.clone()).collect();
            for kind in ["image", "video"] {
                let of_kind: Vec<_> = all
                    .iter()
                    .filter(|(_, g)| g.second_per_grid.is_some() == (kind == "video"))
                    .collect();
                if of_kind.is_empty() {
                    continue;
                }
                let grids: Vec<_> = of_kind.iter().map(|(_, grid)| grid.grid_thw).collect();
                let mut stages = vec![Vec::new(); model.visual.blocks.len() + 1];
                let mut features = Vec::new();
                for (name, grid) in of_kind {
                    let [_, h, w] = grid.grid_thw;
                    let order = match side {
                        Some(side) => vision::WindowPlan::new(h / 2, w / 2, side).order,
                        None => (0..h * w / 4).collect(),
                    };
                    let mut stage = stages.iter_mut();
                    let shape = [grid.grid_thw.iter().product(), 1176];
                    let pixels = TensorData::new(media(name).pixel_values, shape);
                    let pixels = Tensor::from_data(pixels, &Device::flex());
                    let out = model.visual.forward(&model.config, pixels, grid.grid_thw, |x| {
                        stage.next().unwrap().extend(unwindowed(x, &order));
                    });
                    features.extend(values(out));
                }
                for (i, got) in stages.iter().enumerate() {
                    let (key, side) = match i {
                        0 => (format!("vision_patch_embed.{kind}"), None),
                        i => (format!("vision_block_{}.{kind}", i - 1), side),
                    };
                    let want = in_processor_order(batch.f32(&key).0, &grids, side);
                    let difference = max_difference(got, &want);
                    assert!(difference < 5e-5, "{name} {case} {key}: {difference:e}");
                }
                let difference =
                    max_difference(&features, batch.f32(&format!("vision_out.{kind}")).0);
                assert!(difference < 5e-5, "{name} {case} vision_out.{kind}: {difference:e}");
            }
        }
    }
}

#[test]
fn hidden_states_and_logits_equal_the_reference() {
    for name in CHECKPOINTS {
        let model = load(name);
        let hidden = model.config.text.hidden_size;
        for case in CASES {
            let (batch, rows) = case_rows(&model.config, name, case);
            let (states, shape) = batch.f32("hidden_states");
            let per_layer = shape[1] * shape[2] * shape[3];
            for row in &rows {
                let positions =
                    Positions::new(&model.config, &row.input_ids, &row.grids()).unwrap();
                let context = model.context(&[positions], false);
                let mut x = model.embed(&row.input_ids, &row.features(&model)).unwrap();
                for (i, layer) in model.model.layers.iter().enumerate() {
                    let want = cut(&states[i * per_layer..], &row.range, hidden);
                    let difference = max_difference(&values(x.clone()), &want);
                    assert!(difference < 1e-4, "{name} {case} layer {i}: {difference:e}");
                    x = layer.forward(x, &context, None);
                }
                let x = model.model.norm.forward(x);
                let last = &states[model.model.layers.len() * per_layer..];
                let difference = max_difference(&values(x.clone()), &cut(last, &row.range, hidden));
                assert!(difference < 1e-4, "{name} {case} norm: {difference:e}");
                if !batch.has("logits") {
                    continue;
                }
                let logits = values(model.logits(x.squeeze_dim::<2>(0)));
                let want = cut(batch.f32("logits").0, &row.range, model.config.text.vocab_size);
                let difference = max_difference(&logits, &want);
                assert!(difference < LOGITS, "{name} {case} logits: {difference:e}");
            }
        }
    }
}

#[test]
fn loss_equals_the_reference() {
    for name in CHECKPOINTS {
        let model = load(name);
        for case in CASES {
            let (batch, rows) = case_rows(&model.config, name, case);
            let (mut sum, mut tokens) = (0.0, 0);
            for row in &rows {
                let features = row.features(&model);
                let (x, _) = model.forward(&row.input_ids, &row.grids(), &features, None).unwrap();
                let (at, targets) = predictions(&row.labels);
                let n = at.len();
                let at = Tensor::from_data(TensorData::new(at, [n]), &Device::flex());
                let logits = model.logits(x.select(1, at).squeeze_dim::<2>(0));
                sum += total(&values(cross_entropy(logits, &targets)));
                tokens += n;
            }
            let (got, want) = (sum / tokens as f64, f64::from(batch.f32("loss").0[0]));
            assert!((got / want - 1.0).abs() < 1e-5, "{name} {case}: {got} {want}");
        }
    }
}

#[test]
fn every_tensor_of_a_checkpoint_has_one_place() {
    for name in CHECKPOINTS {
        let dir = golden(&format!("ckpt/{name}"));
        let config = Config::from_dir(&dir).unwrap();
        let files = TensorFiles::from_dir(&dir).unwrap();
        let shapes = weights::shapes(&config).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), shapes.keys().collect::<Vec<_>>());
        for (tensor, shape) in &shapes {
            assert_eq!(files.shape(tensor), Some(&shape[..]), "{tensor}");
        }
        assert_eq!(config.family == Family::Qwen2Vl, name == "tiny-qwen2-vl");
    }
}

#[test]
fn a_head_that_is_tied_must_be_the_embedding() {
    let checkpoint = golden("ckpt/tiny-qwen2.5-vl");
    let config = Config::from_dir(&checkpoint).unwrap();
    let own = TensorFiles::from_dir(&checkpoint).unwrap();
    let embedding = "model.embed_tokens.weight";
    let tensor = Outline { name: "lm_head.weight".into(), ..own.outline(embedding).unwrap() };
    let dir = tempfile::tempdir().unwrap();
    let head = dir.path().join("head.safetensors");
    let load = |bytes: Vec<u8>| {
        write_file(&head, std::slice::from_ref(&tensor), |_| Ok(bytes.clone())).unwrap();
        let shards = (1..=3).map(|i| checkpoint.join(format!("model-{i:05}-of-00003.safetensors")));
        let files = TensorFiles::open(shards.chain([head.clone()])).unwrap();
        weights::load(&config, &files, DType::F32, None, &Device::flex()).map(drop)
    };
    let mut bytes = own.bytes(embedding).unwrap();
    load(bytes.clone()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let error = load(bytes).unwrap_err().to_string();
    assert!(error.contains("head.safetensors: `lm_head.weight` differs"), "{error}");
    assert!(error.ends_with("set `tie_word_embeddings` to false in config.json"), "{error}");
}

#[test]
fn a_weight_that_is_missing_or_there_twice_is_named_with_its_file() {
    let sharded = TensorFiles::from_dir(&golden("ckpt/tiny-qwen2.5-vl")).unwrap();
    let error = sharded.bytes("model.no").unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors.index.json: the checkpoint has no `model.no`"),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.safetensors");
    let both = ["model.norm.weight", "model.language_model.norm.weight"];
    let tensors = both.map(|name| Outline::f32(name, &[1]));
    write_file(&file, &tensors, |_| Ok(vec![0; 4])).unwrap();
    let error = TensorFiles::open([file]).err().unwrap().to_string();
    let wanted =
        format!("weights.safetensors: `{}` is the same weight as `{}` of ", both[1], both[0]);
    assert!(error.contains(&wanted), "{error}");
}

#[test]
fn weights_of_another_type_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.safetensors");
    for (dtype, fix) in [(Dtype::F64, "; cast it to f32"), (Dtype::I8, " that is not quantised")] {
        let tensor = Outline { name: "w".into(), dtype, shape: vec![2] };
        let bytes = vec![0; tensor.bytes()];
        write_file(&file, &[tensor], |_| Ok(bytes.clone())).unwrap();
        let files = TensorFiles::open([file.clone()]).unwrap();
        let error = files.f32("w").unwrap_err().to_string();
        assert!(error.contains(&format!("`w` is {dtype:?}")) && error.ends_with(fix), "{error}");
    }
}
