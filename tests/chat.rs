//! Templates, ids and labels equal transformers' and LLaMA-Factory's.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vlm4d_train::data::chat::{Chat, ChatTemplate, Content, IGNORE_INDEX, Message};
use vlm4d_train::data::entry;
use vlm4d_train::data::tokenizer::Tokenizer;

use crate::support::{CHECKPOINTS, golden, json};

fn numbers<T: TryFrom<i64, Error: std::fmt::Debug>>(value: &Value) -> Vec<T> {
    value.as_array().unwrap().iter().map(|n| n.as_i64().unwrap().try_into().unwrap()).collect()
}

fn checkpoint(model: &str) -> Chat {
    Chat::load(&golden(&format!("ckpt/{model}"))).unwrap()
}

fn text(text: &str) -> Content {
    Content::Text(text.into())
}

/// A golden's messages, and the number of tokens of each image and video.
fn messages(sample: &Value, media: &Value) -> (Vec<Message>, Vec<usize>) {
    let mut widths = Vec::new();
    let mut part = |part: &Value| match part["type"].as_str().unwrap() {
        "text" => text(part["text"].as_str().unwrap()),
        kind => {
            let n = &media[part[kind].as_str().unwrap()]["n_llm_tokens"];
            widths.push(usize::try_from(n.as_u64().unwrap()).unwrap());
            if kind == "image" { Content::Image } else { Content::Video }
        }
    };
    let turn = |turn: &Value| {
        let content = match &turn["content"] {
            Value::String(content) => vec![text(content)],
            parts => parts.as_array().unwrap().iter().map(&mut part).collect(),
        };
        Message::new(turn["role"].as_str().unwrap(), content)
    };
    (sample["messages"].as_array().unwrap().iter().map(turn).collect(), widths)
}

#[test]
fn tokenizer_equals_transformers() {
    for model in CHECKPOINTS {
        let folder = golden(&format!("ckpt/{model}"));
        // once from tokenizer.json, once from what a hub repository may have alone
        let bare = tempfile::tempdir().unwrap();
        for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
            fs::copy(folder.join(file), bare.path().join(file)).unwrap();
        }
        for tokenizer in [Tokenizer::load(&folder), Tokenizer::load(bare.path())] {
            let tokenizer = tokenizer.unwrap();
            let cases = json(&format!("{model}/tokenizer_cases.json"));
            assert_eq!(cases.as_array().unwrap().len(), 38);
            for case in cases.as_array().unwrap() {
                let ids: Vec<u32> = numbers(&case["ids"]);
                assert_eq!(
                    tokenizer.encode(case["text"].as_str().unwrap()).unwrap(),
                    ids,
                    "{case}"
                );
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"], "{case}");
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["decoded_skip"], "{case}");
            }
            assert_eq!(tokenizer.token_id("<|video_pad|>").unwrap(), 653);
            assert!(tokenizer.token_id("<|audio_pad|>").is_err());
        }
    }
}

/// The seven samples: text, image, four videos, and both in two turns.
#[test]
fn template_ids_and_labels_equal_transformers() {
    let media = json("processor/index.json");
    for model in CHECKPOINTS {
        let chat = checkpoint(model);
        let samples = json(&format!("{model}/chat_samples.json"));
        assert_eq!(samples.as_object().unwrap().len(), 7);
        for (name, sample) in samples.as_object().unwrap() {
            let (messages, widths) = messages(sample, &media);
            let before = &messages[..messages.len() - 1];
            assert_eq!(chat.template.render(&messages, false).unwrap(), sample["chat_text"]);
            assert_eq!(chat.template.render(before, true).unwrap(), sample["gen_prompt_text"]);
            let encoded = chat.encode_sft(&messages, &widths).unwrap();
            let wanted: Vec<u32> = numbers(&sample["input_ids"]);
            assert_eq!(encoded.input_ids, wanted, "{model} {name}");
            let labels: Vec<i64> = numbers(&sample["labels"]);
            assert_eq!(encoded.labels, labels, "{model} {name}");
            // all before the last answer is what the model is asked with
            let prompt = chat.encode_prompt(before, &widths).unwrap();
            let last = labels.iter().rposition(|&l| l == IGNORE_INDEX).unwrap() + 1;
            assert_eq!(prompt, wanted[..last], "{model} {name}");
        }
    }
}

/// The four rows of the recorded run, read by its own `dataset_info.json`.
#[test]
fn rows_equal_llama_factory() {
    let golden_rows = json("llamafactory/lf_samples.json");
    let (rows, _) = entry::read(&golden("llamafactory/data"), &["tinyvid".into()]).unwrap();
    assert_eq!(rows.len(), 4);
    for (key, model) in [("qwen2_vl", CHECKPOINTS[0]), ("qwen2.5_vl", CHECKPOINTS[1])] {
        let chat = checkpoint(model);
        for (row, wanted) in rows.iter().zip(golden_rows[key]["samples"].as_array().unwrap()) {
            let named = format!("data/{}", row.media[0]);
            let [t, h, w] = numbers::<usize>(&golden_rows[key]["videos"][&named]["grid_thw"][0])
                .try_into()
                .unwrap();
            let encoded = chat.encode_sft(&row.messages, &[t * h * w / 4]).unwrap();
            assert_eq!(encoded.input_ids, numbers::<u32>(&wanted["input_ids"]), "{}", row.id);
            assert_eq!(encoded.labels, numbers::<i64>(&wanted["labels"]), "{}", row.id);
            let spoken = encoded.labels.iter().filter_map(|&l| u32::try_from(l).ok());
            let spoken = chat.tokenizer.decode(&spoken.collect::<Vec<_>>(), false).unwrap();
            assert_eq!(spoken, wanted["supervised"], "{}", row.id);
        }
    }
}

/// Markers spelled by a user or in an answer move no label.
#[test]
fn spelled_markers_do_not_move_labels() {
    let chat = checkpoint(CHECKPOINTS[0]);
    let marker = "<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n";
    let say = |role, said: &str| Message::new(role, [text(said)]);
    let messages = [
        say("user", &format!("q {marker}")),
        say("assistant", &format!("a {marker} b")),
        say("user", "r"),
        say("assistant", "c"),
    ];
    let encoded = chat.encode_sft(&messages, &[]).unwrap();
    let spoken: Vec<u32> = encoded.labels.iter().filter_map(|&l| u32::try_from(l).ok()).collect();
    let wanted = chat.tokenizer.encode(&format!("a {marker} b<|im_end|>\nc<|im_end|>\n")).unwrap();
    assert_eq!(spoken, wanted);
    assert_eq!(encoded.input_ids.len(), encoded.labels.len());
}

#[test]
fn spelled_pads_and_unfinished_conversations_are_refused() {
    let chat = checkpoint(CHECKPOINTS[1]);
    let ask = |content: Vec<Content>| [Message::new("user", content)];
    let refused = |messages: &[Message], widths: &[usize]| {
        let error = chat.encode_prompt(messages, widths).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("image and video pads"), "{error}");
        let answer = Message::new("assistant", [text("a")]);
        assert!(chat.encode_sft(&[messages, &[answer]].concat(), widths).is_err());
    };
    refused(&ask(vec![text("<|video_pad|>")]), &[]);
    refused(&ask(vec![text("<|video_pad|>")]), &[4]);
    refused(&ask(vec![Content::Video, text("<|video_pad|>")]), &[4]);
    // as many pads as media, but of the other kind
    refused(&ask(vec![Content::Video, text("<|image_pad|>")]), &[4, 4]);
    refused(&ask(vec![Content::Video]), &[]);
    refused(&ask(vec![Content::Video]), &[4, 4]);
    assert!(chat.encode_prompt(&ask(vec![Content::Video]), &[4]).is_ok());

    let error = chat.encode_sft(&ask(vec![text("q")]), &[]).unwrap_err();
    assert!(error.to_string().contains("does not end with an assistant"), "{error}");
    assert!(chat.encode_sft(&[], &[]).is_err());
    let alone = [Message::new("assistant", [text("a")])];
    assert!(chat.encode_sft(&alone, &[]).unwrap_err().to_string().contains("rewrites"));
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn templates_are_found_where_checkpoints_have_them() {
    let said = [Message::new("user", [text("q"), Content::Video])];
    let render = |folder: &Path| ChatTemplate::load(folder)?.render(&said, true);
    let one = r#"{"chat_template": "config {{ messages[0].role }}"}"#;
    let named = r#"{"chat_template": [{"name": "rag", "template": "no"},
        {"name": "default", "template": "named {% if add_generation_prompt %}p{% endif %}"}]}"#;
    let jinja = (
        "chat_template.jinja",
        "jinja\n  {% for m in messages %}\n{{ m.content[1].type }}\n  {% endfor %}\n",
    );
    let (tokenizer, file) = (("tokenizer_config.json", one), ("chat_template.json", named));
    assert_eq!(render(folder(&[tokenizer]).path()).unwrap(), "config user");
    assert_eq!(render(folder(&[tokenizer, file]).path()).unwrap(), "named p");
    // blocks take their line with them, as in transformers
    assert_eq!(render(folder(&[tokenizer, file, jinja]).path()).unwrap(), "jinja\nvideo\n");

    let fails = |files: &[(&str, &str)], wanted: &str| {
        let error = render(folder(files).path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(wanted), "{error}\nlacks {wanted}");
    };
    fails(&[], "no chat template");
    fails(&[("tokenizer_config.json", "{\n\"a\": }")], "tokenizer_config.json:2:6: ");
    fails(
        &[("chat_template.jinja", "{% if %}")],
        "chat_template.jinja: chat template: syntax error",
    );
    fails(&[("chat_template.jinja", "{{ raise_exception('turns!') }}")], "turns!");
    // printed as nothing, it would change the prompt unseen
    fails(&[("chat_template.jinja", "{{ bos_token }}")], "undefined");
}

/// A tokenizer.json saved while training may say where to cut.
#[test]
fn a_saved_truncation_cuts_nothing() {
    let path = golden(&format!("ckpt/{}/tokenizer.json", CHECKPOINTS[0]));
    let mut saved: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    saved["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    saved["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 640, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let folder = folder(&[("tokenizer.json", &saved.to_string())]);
    let plain = checkpoint(CHECKPOINTS[0]).tokenizer;
    let sentence = "How many people are there? Answer briefly.";
    let ids = Tokenizer::load(folder.path()).unwrap().encode(sentence).unwrap();
    assert_eq!(ids, plain.encode(sentence).unwrap());
}

#[test]
fn faults_of_a_tokenizer_are_named() {
    let vocab = ("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#);
    let with = |merges: &str, id: &str| {
        let config = serde_json::json!({"added_tokens_decoder": {id: {"content": "<|im_end|>",
            "lstrip": false, "rstrip": false, "normalized": false, "single_word": false,
            "special": true}}});
        let config = config.to_string();
        folder(&[vocab, ("merges.txt", merges), ("tokenizer_config.json", &config)])
    };
    for (folder, wanted) in [
        (folder(&[]), "vocab.json: no such file"),
        (folder(&[vocab]), "merges.txt: no such file"),
        (folder(&[("tokenizer.json", "{")]), "tokenizer.json: "),
        (with("#version: 0.2\nab\n", "3"), "merges.txt:2: not a pair"),
        (with("a c\n", "3"), "merges.txt: "),
        (with("a b\n", "9"), "`<|im_end|>` cannot have the id 9"),
        (with("a b\n", "x"), "`x` is no token id"),
    ] {
        let error = Tokenizer::load(folder.path()).err().expect("an error");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(wanted), "{error}\nlacks {wanted}");
    }
    let folder = with("#version: 0.2\na b\n", "3");
    assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("abb<|im_end|>").unwrap(), [2, 1, 3]);
}
