//! A judge behind an OpenAI-compatible endpoint (`POST …/chat/completions`): OpenAI itself, vLLM,
//! llama.cpp's server, Ollama and others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;

use super::cache::Cache;
use super::prompt::{CRITERION, FORM, case, ruling, schema};
use super::{Case, Cost, Ruling};
use crate::error::{Error, Result};
use crate::recipe::Judge as Config;
use crate::{interrupt, parallel};

/// OpenAI's own endpoint.
pub const OPENAI: &str = "https://api.openai.com/v1";
/// First wait before a request is sent again; it doubles each time.
const BACK_OFF: Duration = Duration::from_secs(1);
/// Longest wait, whatever the endpoint asks for.
const LONGEST: Duration = Duration::from_mins(2);

/// A client of one endpoint and model.
pub struct OpenAi {
    config: Config,
    name: String,
    model: String,
    url: String,
    key: Option<String>,
    agent: Agent,
    cache: Cache,
    back_off: Duration,
    /// Whether the endpoint takes each of [`PARTS`], until it says that it does not.
    takes: [AtomicBool; 2],
}

/// Why a request brought no ruling.
enum Failure {
    /// Sending it again may help; after so long, where the endpoint says so.
    Passing(String, Option<Duration>),
    /// The endpoint refuses this one of [`PARTS`].
    LeaveOut(usize),
    /// It never will.
    Final(Error),
}

/// Parts of a request that some endpoints refuse, and that can be left out.
const PARTS: [&str; 2] = ["response_format", "temperature"];

/// An endpoint's answer, as far as it matters here.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Answer,
}

#[derive(Deserialize)]
struct Answer {
    content: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl OpenAi {
    /// The judge that `config` describes; its key comes from the environment.
    ///
    /// # Errors
    /// Where the model is not named, or OpenAI's own endpoint has no key.
    pub fn new(config: &Config) -> Result<Self> {
        let model = config.model.clone().ok_or_else(|| {
            Error::input("eval.judge: `model` is missing").help("name the model of the endpoint")
        })?;
        let url = config.url.clone().unwrap_or_else(|| OPENAI.into());
        let key = std::env::var(&config.key_env).ok().filter(|key| !key.trim().is_empty());
        if key.is_none() && url == OPENAI {
            return Err(Error::input(format!("eval.judge: {} is not set", config.key_env))
                .of_key("eval.judge")
                .help("put the endpoint's key into that variable, or name another by `key_env`"));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs_f64(config.timeout_s)))
            .user_agent(concat!("vlm4d-train/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            name: format!("openai/{model}"),
            model,
            url: format!("{}/chat/completions", url.trim_end_matches('/')),
            key: key.map(|key| key.trim().to_owned()),
            agent,
            cache: Cache::new(&config.cache),
            back_off: BACK_OFF,
            takes: [true, true].map(AtomicBool::new),
            config: config.clone(),
        })
    }

    /// Waits so long before the first retry, for tests.
    #[must_use]
    pub fn with_back_off(mut self, back_off: Duration) -> Self {
        self.back_off = back_off;
        self
    }

    /// The name that stands beside its verdicts.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rules on `cases`, in order, `concurrency` of them at a time. What is in the cache is not
    /// asked, and what is asked is there at once: an interrupted judging goes on where it stopped.
    ///
    /// # Errors
    /// The first case that cannot be ruled on.
    pub fn rule(
        &self,
        cases: &[Case],
        mut progress: impl FnMut(usize),
    ) -> Result<(Vec<Ruling>, Cost)> {
        let failed = AtomicBool::new(false);
        let rule_on = |&(i, case): &(usize, &Case)| {
            // What is begun may be tried for minutes.
            if failed.load(Ordering::Relaxed) {
                return (i, Ok(None));
            }
            let ruled = self.rule_on(case);
            failed.fetch_or(ruled.is_err(), Ordering::Relaxed);
            (i, ruled.map(Some))
        };
        let (mut rulings, mut total) = (BTreeMap::new(), Cost::default());
        let numbered: Vec<(usize, &Case)> = cases.iter().enumerate().collect();
        let threads = self.config.concurrency.min(cases.len());
        parallel::each_ahead(&numbered, threads, 0, rule_on, |done, (i, ruled)| {
            if let Some((ruling, cost)) = ruled? {
                rulings.insert(i, ruling);
                total.add(&cost);
                progress(done);
            }
            Ok(())
        })?;
        total.price = self.price(&total);
        Ok((rulings.into_values().collect(), total))
    }

    fn price(&self, cost: &Cost) -> Option<f64> {
        let (input, output) = (self.config.input_price?, self.config.output_price?);
        Some((input * cost.prompt_tokens as f64 + output * cost.completion_tokens as f64) / 1e6)
    }

    fn rule_on(&self, case: &Case) -> Result<(Ruling, Cost)> {
        // Whether a part is left out does not change what is asked.
        let asked = format!("{}\n{}", self.url, self.request(case, [true, true]));
        if let Some(ruling) = self.cache.get(&asked, case) {
            return Ok((ruling, Cost { cached: 1, ..Cost::default() }));
        }
        let mut cost = Cost { asked: 1, ..Cost::default() };
        let mut wait = self.back_off;
        loop {
            interrupt::check("the judging of responses")?;
            match self.send(case, &mut cost) {
                Ok(ruling) => {
                    self.cache.put(&asked, &self.name, case, &ruling)?;
                    return Ok((ruling, cost));
                }
                Err(Failure::LeaveOut(part)) => self.takes[part].store(false, Ordering::Relaxed),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(why, _)) if cost.retries >= self.config.max_retries => {
                    return Err(Error::run(format!(
                        "{}: {why}, {} times in a row",
                        self.url,
                        cost.retries + 1
                    ))
                    .help("start the same command again to go on: what was judged is kept"));
                }
                Err(Failure::Passing(_, after)) => {
                    cost.retries += 1;
                    sleep(after.unwrap_or(wait).min(LONGEST));
                    wait = (wait * 2).min(LONGEST);
                }
            }
        }
    }

    fn request(&self, one: &Case, [with_schema, with_temperature]: [bool; 2]) -> Value {
        let mut request = json!({"model": self.model, "messages": [
            {"role": "system", "content": format!("{CRITERION}\n{FORM}")},
            {"role": "user", "content": case(one)},
        ]});
        if with_schema {
            request["response_format"] = schema();
        }
        if with_temperature {
            request["temperature"] = json!(0);
        }
        request
    }

    /// One request; its tokens are counted whatever it brings.
    fn send(&self, case: &Case, cost: &mut Cost) -> Result<Ruling, Failure> {
        let with = self.takes.each_ref().map(|takes| takes.load(Ordering::Relaxed));
        let body = self.request(case, with);
        let mut request = self.agent.post(&self.url).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let passing = |why: String| Failure::Passing(why, None);
        let mut response = request.send(body.to_string()).map_err(|e| passing(reason(&e)))?;
        let status = response.status().as_u16();
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let after = after.and_then(|seconds| seconds.trim().parse::<f64>().ok());
        let after = after.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let text = response.body_mut().read_to_string().map_err(|e| passing(reason(&e)))?;
        if status != 200 {
            return Err(self.refused(status, &text, after, &body));
        }
        let completion: Completion = serde_json::from_str(&text)
            .map_err(|_| passing(format!("the answer is no completion: {}", start(&text))))?;
        let usage = completion.usage.unwrap_or_default();
        cost.prompt_tokens += usage.prompt_tokens;
        cost.completion_tokens += usage.completion_tokens;
        let answer = completion.choices.into_iter().next().and_then(|c| c.message.content);
        let answer = answer.unwrap_or_default();
        ruling(&answer)
            .ok_or_else(|| passing(format!("the model's answer is no verdict: {}", start(&answer))))
    }

    fn refused(&self, status: u16, text: &str, after: Option<Duration>, body: &Value) -> Failure {
        let what = format!("status {status}: {}", start(&message(text)));
        let fatal = |help: &str| {
            Failure::Final(Error::run(format!("{}: {what}", self.url)).help(help.to_owned()))
        };
        match status {
            400 | 422 => {
                let named = |part: &&str| body.get(part).is_some() && text.contains(part);
                match PARTS.iter().position(named) {
                    Some(part) => Failure::LeaveOut(part),
                    // Some say no more than that the request is bad.
                    None if body.get(PARTS[0]).is_some() => Failure::LeaveOut(0),
                    None => fatal("the endpoint does not take the request; check eval.judge.model"),
                }
            }
            401 | 403 => fatal(&format!("check the key in {}", self.config.key_env)),
            404 => fatal("check eval.judge.url (it ends before /chat/completions) and model"),
            408 | 409 | 425 | 429 | 500..=599 => Failure::Passing(what, after),
            _ => fatal("check eval.judge.url"),
        }
    }
}

impl Cost {
    /// Adds what another judging took; the price comes at the end.
    fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.cached += other.cached;
        self.retries += other.retries;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".into(),
        ureq::Error::Io(e) => format!("the connection failed: {e}"),
        other => other.to_string(),
    }
}

/// The message within an error's JSON, or all of it.
fn message(text: &str) -> String {
    let json: Option<Value> = serde_json::from_str(text).ok();
    let inner = json.as_ref().and_then(|json| json["error"]["message"].as_str());
    inner.unwrap_or(text).to_owned()
}

/// The start of a text, on one line.
fn start(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().take(120).collect();
    if cut.len() < line.len() { format!("`{cut}…`") } else { format!("`{cut}`") }
}
