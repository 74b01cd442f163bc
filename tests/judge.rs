//! Judges: an endpoint on loopback that answers as OpenAI's does, and fails as networks and models
//! do; and the checkpoint as its own judge.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vlm4d_train::data::chat::Chat;
use vlm4d_train::data::vlm4d::Format;
use vlm4d_train::error::Kind;
use vlm4d_train::eval::judge::base::Base;
use vlm4d_train::eval::judge::openai::OpenAi;
use vlm4d_train::eval::judge::{Case, Judge, prompt};
use vlm4d_train::eval::predict::Prediction;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::recipe::{self, Recipe};

use crate::evaluation::prediction;
use crate::support::golden;
use crate::support::model::load;

/// What the endpoint does with one request.
#[derive(Clone, Debug)]
enum Reply {
    /// This verdict.
    Verdict(bool),
    /// This text in the place of a verdict.
    Says(&'static str),
    /// This status, with a time to wait in seconds.
    Status(u16, Option<&'static str>),
    /// 400 with this message.
    Refuses(&'static str),
    /// A body that is no JSON.
    Garbage,
    /// Half an answer, and the connection ends.
    Cut,
    /// Nothing, until the client has gone.
    Hangs,
}

#[derive(Default)]
struct State {
    /// What it does next; when there is nothing left, [`Reply::Verdict`] by the response's text.
    replies: VecDeque<Reply>,
    requests: Vec<Value>,
    keys: Vec<String>,
    times: Vec<Instant>,
    open: usize,
    most_open: usize,
}

struct Endpoint {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Endpoint {
    fn new(replies: impl Into<VecDeque<Reply>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { replies: replies.into(), ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { port, state }
    }

    fn judge(&self, cache: &Path, extra: &str) -> OpenAi {
        OpenAi::new(&self.config(cache, extra)).unwrap().with_back_off(Duration::from_millis(5))
    }

    fn config(&self, cache: &Path, extra: &str) -> recipe::Judge {
        let judge = format!(
            "{{ kind = \"openai\", url = \"http://127.0.0.1:{}/v1/\", model = \"m\", cache = {:?}{extra} }}",
            self.port,
            cache.display().to_string()
        );
        recipe(&format!("judge = {judge}")).eval.judge
    }

    fn requests(&self) -> Vec<Value> {
        self.state.lock().unwrap().requests.clone()
    }
}

fn recipe(eval: &str) -> Recipe {
    let text = format!("[model]\npath = \"m\"\n[data]\npath = \"d\"\n[eval]\n{eval}");
    Recipe::from_text(&text, "r.toml").unwrap_or_else(|e| panic!("{e}"))
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut length, mut key, mut line) = (0, String::new(), String::new());
    while reader.read_line(&mut line).unwrap_or(0) > 2 {
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => value.trim().clone_into(&mut key),
            _ => {}
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let user = request["messages"][1]["content"].as_str().unwrap().to_owned();
    let reply = {
        let mut state = state.lock().unwrap();
        state.requests.push(request);
        state.keys.push(key);
        state.times.push(Instant::now());
        state.open += 1;
        state.most_open = state.most_open.max(state.open);
        state.replies.pop_front()
    };
    let reply = reply.unwrap_or_else(|| {
        std::thread::sleep(Duration::from_millis(20));
        Reply::Verdict(user.contains("good"))
    });
    // Who has read the answer may ask again at once.
    state.lock().unwrap().open -= 1;
    answer(stream, &reply);
}

fn answer(mut stream: TcpStream, reply: &Reply) {
    let completion = |text: &str| {
        json!({"choices": [{"message": {"role": "assistant", "content": text}}],
               "usage": {"prompt_tokens": 100, "completion_tokens": 10}})
        .to_string()
    };
    let (status, extra, body) = match reply {
        Reply::Verdict(correct) => {
            let verdict = json!({"extracted_answer": "left", "correct": correct}).to_string();
            (200, String::new(), completion(&verdict))
        }
        Reply::Says(text) => (200, String::new(), completion(text)),
        Reply::Garbage => (200, String::new(), "<html>busy</html>".into()),
        Reply::Refuses(what) => {
            (400, String::new(), json!({"error": {"message": what}}).to_string())
        }
        Reply::Status(status, wait) => {
            let wait = wait.map_or_else(String::new, |s| format!("Retry-After: {s}\r\n"));
            (*status, wait, json!({"error": {"message": "no"}}).to_string())
        }
        Reply::Cut => {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{{\"choices\"");
            return;
        }
        Reply::Hangs => {
            let _ = stream.read(&mut [0]);
            return;
        }
    };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\n{extra}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
}

fn cases(responses: &[&str]) -> Vec<Case> {
    let case = |response: &&str| Case {
        question: "Where does the car go?".into(),
        gold: "to the left".into(),
        response: (*response).into(),
    };
    responses.iter().map(case).collect()
}

#[test]
fn a_judge_is_told_the_criterion_and_answers_in_a_form() {
    let (endpoint, dir) = (Endpoint::new([]), tempfile::tempdir().unwrap());
    let judge = endpoint.judge(dir.path(), ", input_price = 2.0, output_price = 10.0");
    assert_eq!(judge.name(), "openai/m");
    let (rulings, cost) = judge.rule(&cases(&["good one", "bad one"]), |_| ()).unwrap();
    assert_eq!(rulings.iter().map(|r| r.correct).collect::<Vec<_>>(), [true, false]);
    assert_eq!((cost.asked, cost.cached, cost.retries), (2, 0, 0));
    assert_eq!((cost.prompt_tokens, cost.completion_tokens), (200, 20));
    // 200 tokens at 2 and 20 at 10 for a million.
    assert!((cost.price.unwrap() - 0.0006).abs() < 1e-12);
    let request = &endpoint.requests()[0];
    assert_eq!((&request["model"], &request["temperature"]), (&json!("m"), &json!(0)));
    assert_eq!(request["response_format"]["json_schema"]["strict"], true);
    let system = request["messages"][0]["content"].as_str().unwrap();
    assert!(system.contains("beyond doubt") && system.contains("extracted_answer"), "{system}");
    let user = request["messages"][1]["content"].as_str().unwrap();
    for part in ["Where does the car go?", "to the left", "one"] {
        assert!(user.contains(part), "{user}");
    }
}

#[test]
fn what_is_judged_once_is_not_asked_again() {
    let (endpoint, dir) = (Endpoint::new([]), tempfile::tempdir().unwrap());
    let first = endpoint.judge(dir.path(), "").rule(&cases(&["good", "bad"]), |_| ()).unwrap().0;
    let again = endpoint.judge(dir.path(), "").rule(&cases(&["good", "bad", "new"]), |_| ());
    let (rulings, cost) = again.unwrap();
    assert_eq!(rulings[..2], first);
    assert_eq!((cost.asked, cost.cached, cost.prompt_tokens), (1, 2, 100));
    assert_eq!(endpoint.requests().len(), 3);
    // Another model is another judge.
    let mut config = endpoint.config(dir.path(), "");
    config.model = Some("n".into());
    let other = OpenAi::new(&config).unwrap().rule(&cases(&["good"]), |_| ()).unwrap().1;
    assert_eq!(other.asked, 1);
    // A damaged file is asked for again.
    let mut files = Vec::new();
    for folder in std::fs::read_dir(dir.path()).unwrap() {
        files.extend(std::fs::read_dir(folder.unwrap().path()).unwrap().map(|f| f.unwrap().path()));
    }
    assert_eq!(files.len(), 4);
    files.iter().for_each(|file| std::fs::write(file, "{\"ruling\"").unwrap());
    let (rulings, cost) = endpoint.judge(dir.path(), "").rule(&cases(&["good"]), |_| ()).unwrap();
    assert!(rulings[0].correct && cost.asked == 1);
}

#[test]
fn what_passes_is_tried_again() {
    for reply in [
        Reply::Status(429, None),
        Reply::Status(429, Some("0.2")),
        Reply::Status(429, Some("soon")),
        Reply::Status(429, Some("1e20")),
        Reply::Status(500, None),
        Reply::Status(503, Some("0")),
        Reply::Garbage,
        Reply::Cut,
        Reply::Hangs,
        Reply::Says("It seems correct to me."),
        Reply::Says("{\"extracted_answer\": \"left\", \"correct\": \"yes\"}"),
        Reply::Says(""),
    ] {
        let endpoint = Endpoint::new([reply.clone(), reply.clone()]);
        let dir = tempfile::tempdir().unwrap();
        // On a busy machine even a connection takes its time.
        let patience = if let Reply::Hangs = reply { ", timeout_s = 1.0" } else { "" };
        let extra = format!(", max_retries = 2{patience}");
        let judged = endpoint.judge(dir.path(), &extra).rule(&cases(&["good"]), |_| ());
        let (rulings, cost) = judged.unwrap_or_else(|e| panic!("{reply:?}: {e}"));
        assert!(rulings[0].correct, "{reply:?}");
        assert_eq!((cost.asked, cost.retries), (1, 2), "{reply:?}");
        let times = endpoint.state.lock().unwrap().times.clone();
        if let Reply::Status(429, Some("0.2")) = reply {
            assert!(times[1] - times[0] >= Duration::from_millis(200), "came back too early");
        }
        // Failing on is an error, and what failed is not kept.
        let endpoint = Endpoint::new(vec![reply.clone(); 3]);
        let dir = tempfile::tempdir().unwrap();
        let judge = endpoint.judge(dir.path(), &extra);
        let error = judge.rule(&cases(&["good"]), |_| ()).unwrap_err();
        assert!(error.to_string().contains("3 times in a row"), "{error}");
        assert_eq!(error.kind(), Kind::Run);
        assert_eq!(endpoint.requests().len(), 3, "{reply:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn waits_double_from_one_try_to_the_next() {
    let endpoint = Endpoint::new(vec![Reply::Status(500, None); 3]);
    let dir = tempfile::tempdir().unwrap();
    let judge = endpoint.judge(dir.path(), "").with_back_off(Duration::from_millis(40));
    judge.rule(&cases(&["good"]), |_| ()).unwrap();
    let times = endpoint.state.lock().unwrap().times.clone();
    for (i, least) in [40, 80, 160].into_iter().enumerate() {
        let waited = times[i + 1] - times[i];
        assert!(waited >= Duration::from_millis(least), "{i}: {waited:?}");
    }
}

/// However often it doubles, a wait stays one.
#[test]
fn many_tries_are_no_trouble() {
    let endpoint = Endpoint::new(vec![Reply::Status(503, Some("0")); 70]);
    let dir = tempfile::tempdir().unwrap();
    let judge = endpoint.judge(dir.path(), ", max_retries = 70");
    let judge = judge.with_back_off(Duration::from_secs(1));
    let (rulings, cost) = judge.rule(&cases(&["good"]), |_| ()).unwrap();
    assert!(rulings[0].correct && cost.retries == 70);
}

#[test]
fn what_will_never_pass_is_told_at_once() {
    for (reply, wanted) in [
        (Reply::Status(401, None), "check the key in OPENAI_API_KEY"),
        (Reply::Status(404, None), "check eval.judge.url"),
        (Reply::Status(418, None), "status 418: `no`"),
    ] {
        let (endpoint, dir) = (Endpoint::new([reply]), tempfile::tempdir().unwrap());
        let error = endpoint.judge(dir.path(), "").rule(&cases(&["good"]), |_| ()).unwrap_err();
        assert!(error.to_string().contains(wanted), "no `{wanted}` in {error}");
        assert_eq!(endpoint.requests().len(), 1);
    }
    // Nobody listens.
    let dir = tempfile::tempdir().unwrap();
    let mut config = Endpoint::new([]).config(dir.path(), ", max_retries = 1");
    config.url = Some("http://127.0.0.1:9/v1".into());
    let judge = OpenAi::new(&config).unwrap().with_back_off(Duration::from_millis(1));
    let error = judge.rule(&cases(&["good"]), |_| ()).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

#[test]
fn endpoints_that_know_less_are_asked_for_less() {
    for (message, missing) in [
        ("response_format is not supported", "response_format"),
        ("Unsupported value: 'temperature' does not support 0", "temperature"),
        ("bad request", "response_format"),
    ] {
        let replies = [
            Reply::Refuses(message),
            Reply::Says("```json\n{\"extracted_answer\": \"left\", \"correct\": true}\n```"),
        ];
        let (endpoint, dir) = (Endpoint::new(replies), tempfile::tempdir().unwrap());
        let judge = endpoint.judge(dir.path(), ", concurrency = 1");
        let (rulings, cost) = judge.rule(&cases(&["a", "b good"]), |_| ()).unwrap();
        assert!(rulings[0].correct && cost.retries == 0);
        // It is left out from then on.
        let requests = endpoint.requests();
        assert_eq!(requests.len(), 3);
        assert!(requests[0].get(missing).is_some());
        assert!(requests[1..].iter().all(|request| request.get(missing).is_none()), "{message}");
    }
    let refuse = vec![Reply::Refuses("no such model"); 3];
    let (endpoint, dir) = (Endpoint::new(refuse), tempfile::tempdir().unwrap());
    let error = endpoint.judge(dir.path(), "").rule(&cases(&["good"]), |_| ()).unwrap_err();
    assert!(error.to_string().contains("no such model"), "{error}");
}

#[test]
fn no_more_requests_are_open_than_allowed() {
    let (endpoint, dir) = (Endpoint::new([]), tempfile::tempdir().unwrap());
    let texts: Vec<String> = (0..24).map(|i| format!("{} {i}", ["good", "bad"][i % 2])).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut seen = Vec::new();
    let judge = endpoint.judge(dir.path(), ", concurrency = 3");
    let (rulings, _) = judge.rule(&cases(&texts), |done| seen.push(done)).unwrap();
    for (i, ruling) in rulings.iter().enumerate() {
        assert_eq!(ruling.correct, i % 2 == 0, "case {i} has another's ruling");
    }
    assert_eq!(seen, (1..=24).collect::<Vec<_>>());
    let most = endpoint.state.lock().unwrap().most_open;
    assert!((2..=3).contains(&most), "{most} at once");
}

#[test]
fn the_key_comes_from_the_environment() {
    let (endpoint, dir) = (Endpoint::new([]), tempfile::tempdir().unwrap());
    // A variable that any shell has.
    let judge = endpoint.judge(dir.path(), ", key_env = \"PATH\"");
    judge.rule(&cases(&["good"]), |_| ()).unwrap();
    let path = std::env::var("PATH").unwrap();
    assert_eq!(endpoint.state.lock().unwrap().keys, [format!("Bearer {path}")]);
    endpoint.judge(dir.path(), ", key_env = \"NO_SUCH_KEY\"").rule(&cases(&["b"]), |_| ()).unwrap();
    assert_eq!(endpoint.state.lock().unwrap().keys[1], "");
    let openai = recipe("judge = { kind = \"openai\", model = \"m\", key_env = \"NO_SUCH_KEY\" }");
    let error = OpenAi::new(&openai.eval.judge).err().unwrap();
    assert!(error.to_string().contains("NO_SUCH_KEY is not set"), "{error}");
    assert_eq!(error.kind(), Kind::Input);
}

#[test]
fn verdicts_are_found_in_text_and_not_made_up() {
    let ruled = |text: &str| prompt::ruling(text).map(|r| (r.extracted, r.correct));
    let left = Some("left".to_owned());
    for (text, want) in [
        ("{\"extracted_answer\": \"left\", \"correct\": true}", Some((left.clone(), true))),
        (
            "Sure!\n```json\n{\"correct\": false, \"extracted_answer\": \" left \"}\n```",
            Some((left.clone(), false)),
        ),
        (
            "{I think} {\"extracted_answer\": \"left\", \"correct\": true, \"why\": \"{}\"}",
            Some((left.clone(), true)),
        ),
        ("{\"extracted_answer\": 3, \"correct\": true}", Some((Some("3".to_owned()), true))),
        // Nothing answered is nothing right.
        ("{\"extracted_answer\": \"\", \"correct\": true}", Some((None, false))),
        ("{\"extracted_answer\": null, \"correct\": false}", Some((None, false))),
        ("{\"extracted_answer\": \"left\"}", None),
        ("{\"correct\": 1}", None),
        ("correct", None),
        ("", None),
        ("{{{{", None),
        (
            "{\"extracted_answer\": \"a\", \"correct\": true} {\"extracted_answer\": \"a\", \"correct\": false}",
            None,
        ),
    ] {
        assert_eq!(ruled(text), want, "{text}");
    }
}

fn freeform(id: &str, response: &str, correct: bool) -> Prediction {
    Prediction {
        format: Format::Ff,
        question: "Where does the car go?".into(),
        gold: "left".into(),
        response: response.into(),
        extracted: (!response.is_empty()).then(|| response.to_owned()),
        correct,
        ..prediction(id, None, correct)
    }
}

#[test]
fn only_what_the_rules_leave_open_is_judged() {
    let (endpoint, dir) = (Endpoint::new([]), tempfile::tempdir().unwrap());
    let judge = Judge::OpenAi(Box::new(endpoint.judge(dir.path(), "")));
    let mut all = vec![
        freeform("accepted", "left", true),
        freeform("empty", " ", false),
        freeform("open", "a good bit leftish", false),
        freeform("twice", "a good bit leftish", false),
        freeform("wrong", "up", false),
        prediction("mc", None, false),
    ];
    let before = all.clone();
    let cost = judge.apply(&mut all, |_| ()).unwrap();
    assert_eq!(cost.asked, 2, "each distinct case once");
    let graders: Vec<&str> = all.iter().map(|p| &*p.grader).collect();
    let judged = "openai/m";
    assert_eq!(graders, ["rules", "rules", judged, judged, judged, "rules"]);
    assert_eq!(
        all.iter().map(|p| p.correct).collect::<Vec<_>>(),
        [true, false, true, true, false, false]
    );
    assert_eq!((&all[0], &all[1], &all[5]), (&before[0], &before[1], &before[5]));
    assert_eq!(all[2].extracted.as_deref(), Some("left"));
}

#[test]
fn a_checkpoint_judges_for_itself_without_its_adapter() {
    for name in ["tiny-qwen2-vl", "tiny-qwen2.5-vl"] {
        let mut model = load(name);
        let chat = Chat::load(&golden(&format!("ckpt/{name}"))).unwrap();
        let texts = ["left", "right", "it goes to the left side", "no idea", "up"];
        let rule = |model: &QwenVl, batch_size| {
            let judge = Base::new(model, &chat, "base/tiny".into(), batch_size).unwrap();
            judge.rule(&cases(&texts), |_| ()).unwrap()
        };
        let (together, cost) = rule(&model, 16);
        assert_eq!((together.len(), cost.asked), (5, 5));
        assert_eq!(rule(&model, 1).0, together, "the batch decides the verdict");
        // An adapter that turns everything round does not touch the judge.
        let lora = recipe::Lora::default();
        vlm4d_train::model::peft::attach(&mut model, &lora, 3).unwrap();
        for (_, layer) in model.linear_layers_mut() {
            if let Some(lora) = &mut layer.lora {
                lora.scaling = 1e3;
                let b = lora.lora_b.val();
                lora.lora_b = burn::module::Param::from_tensor(b.ones_like());
            }
        }
        assert_eq!(rule(&model, 16).0, together);
    }
}

#[test]
fn recipes_with_half_a_judge_are_refused() {
    for (judge, wanted) in [
        ("{ kind = \"openai\" }", "`model` is missing"),
        (
            "{ kind = \"openai\", model = \"m\", url = \"api.openai.com\" }",
            "`url` is api.openai.com",
        ),
        ("{ kind = \"openai\", model = \"m\", concurrency = 0 }", "`concurrency` is 0"),
        ("{ kind = \"openai\", model = \"m\", timeout_s = 0.0 }", "`timeout_s` is 0"),
        ("{ kind = \"openai\", model = \"m\", input_price = 1.0 }", "`input_price`"),
        ("{ kind = \"rules\", model = \"m\" }", "`model` is m, which"),
        ("{ kind = \"opnai\" }", "did you mean `openai`?"),
        ("{ kind = \"base\", modle = \"m\" }", "did you mean `model`?"),
    ] {
        let text = format!("[model]\npath = \"m\"\n[data]\npath = \"d\"\n[eval]\njudge = {judge}");
        let error = Recipe::from_text(&text, "r.toml").unwrap_err();
        assert!(error.to_string().contains(wanted), "no `{wanted}` in\n{error}");
        assert!(error.to_string().starts_with("r.toml:6:"), "{error}");
    }
}
