// A PTX module: its variables and kernels.
#pragma once
#include "instructions.h"

static string without_comments(const string &s) {
    string r;
    r.reserve(s.size());
    for (size_t i = 0; i < s.size();) {
        if (s[i] == '/' && i + 1 < s.size() && s[i + 1] == '/') {
            while (i < s.size() && s[i] != '\n') i++;
        } else if (s[i] == '/' && i + 1 < s.size() && s[i + 1] == '*') {
            i = s.find("*/", i);
            if (i == string::npos) break;
            i += 2;
        } else r += s[i++];
    }
    // lines of .loc and .file end without a semicolon
    string q;
    size_t i = 0;
    while (i < r.size()) {
        size_t e = r.find('\n', i);
        if (e == string::npos) e = r.size();
        string line = trim(r.substr(i, e - i));
        if (line.rfind(".section", 0) == 0) break;
        if (line.rfind(".loc", 0) == 0 && line.size() > 4 && isspace(line[4])) line = "";
        if (line.rfind(".file", 0) == 0 || line.rfind(".version", 0) == 0 || line.rfind(".target", 0) == 0 ||
            line.rfind(".address_size", 0) == 0)
            line = "";
        if (!line.empty()) {
            q += line;
            q += '\n';
        }
        i = e + 1;
    }
    return q;
}
static void body(Decoder &d, const string &s, size_t &i) { // s[i] is after the entry's '{'
    string cur;
    int depth = 0; // of braces inside an instruction
    d.scopes.push_back({});
    int scopes = 1;
    for (; i < s.size(); i++) {
        char c = s[i];
        bool start = trim(cur).empty();
        if (c == '{' && start) {
            d.scopes.push_back({});
            scopes++;
            cur.clear();
            continue;
        }
        if (c == '}' && start && depth == 0) {
            if (--scopes == 0) {
                i++;
                return;
            }
            d.scopes.pop_back();
            cur.clear();
            continue;
        }
        if (c == '{') depth++;
        if (c == '}') depth--;
        if (c == ':' && depth == 0) {
            string l = trim(cur);
            bool label = !l.empty() && (i + 1 >= s.size() || s[i + 1] != ':') && (i == 0 || s[i - 1] != ':');
            for (char x : l)
                if (!(isalnum(x) || x == '_' || x == '$' || x == '%')) label = false;
            if (label) {
                d.labels[l] = d.k.code.size();
                cur.clear();
                continue;
            }
        }
        if (c == ';' && depth == 0) {
            d.statement(cur);
            cur.clear();
            continue;
        }
        cur += c == '\n' ? ' ' : c;
    }
    die("body without end");
}
static Module *load_module(const char *ptx) {
    auto mod = new Module;
    mod->text = ptx;
    string s = without_comments(mod->text);
    std::map<string, Sym> globals;
    size_t i = 0;
    string cur;
    while (i < s.size()) {
        char c = s[i];
        if (c == ';') {
            string st = trim(cur);
            cur.clear();
            i++;
            if (st.empty() || st.rfind(".pragma", 0) == 0) continue;
            Kernel dummy;
            Decoder d(*mod, dummy);
            if (st.find(".shared") != string::npos && st.find(".extern") == string::npos)
                die("shared variable of a module: " + st);
            d.variable(st, globals);
            continue;
        }
        if (c == '=') { // an initialiser in braces
            size_t e = s.find(';', i);
            cur += s.substr(i, e - i);
            i = e;
            continue;
        }
        if (c == '{') {
            string head = trim(cur);
            cur.clear();
            i++;
            size_t p = head.find(".entry");
            if (p == string::npos) die("function: " + head);
            size_t l = head.find('(', p), r = head.rfind(')');
            string name = trim(head.substr(p + 6, (l == string::npos ? head.find('.', p + 6) : l) - p - 6));
            auto k = std::make_unique<Kernel>();
            k->name = name;
            Decoder d(*mod, *k);
            d.globals = globals;
            if (l != string::npos)
                for (auto &q : operands_of(head.substr(l + 1, r - l - 1))) {
                    vector<string> w;
                    string t;
                    for (char x : q + " ") {
                        if (isspace(x)) {
                            if (!t.empty()) w.push_back(t);
                            t.clear();
                        } else t += x;
                    }
                    u32 align = 0;
                    u32 elem = 4;
                    u64 count = 1;
                    string n;
                    for (size_t j = 0; j < w.size(); j++) {
                        if (w[j] == ".param" || w[j] == ".ptr" || w[j] == ".global") {
                        } else if (w[j] == ".align") align = atoi(w[++j].c_str());
                        else if (w[j][0] == '.') elem = bytes_of(w[j].substr(1));
                        else n = w[j];
                    }
                    size_t b = n.find('[');
                    if (b != string::npos) {
                        count = strtoull(n.c_str() + b + 1, 0, 0);
                        n = n.substr(0, b);
                    }
                    if (!align || b == string::npos) align = elem;
                    // The alignment of what a pointer points to is not the parameter's.
                    k->param_size = (k->param_size + align - 1) / align * align;
                    k->params.push_back({n, k->param_size, (u32)(elem * count)});
                    d.locals[n] = {PARAM, k->param_size, true};
                    k->param_size += elem * count;
                }
            // Dynamic shared memory begins after the static: shared variables are declared in the
            // body before they are used, those of the module have none here.
            for (auto &g : d.globals)
                if (g.second.space == SHARED && g.second.value == (u64)-1) g.second.value = 0;
            body(d, s, i);
            if (k->static_shared)
                for (auto &g : globals)
                    if (g.second.space == SHARED) die("static and dynamic shared memory in " + name);
            for (auto &f : d.fixups) {
                auto it = d.labels.find(f.second);
                if (it == d.labels.end()) die("label " + f.second);
                k->code[f.first].target = it->second;
            }
            Inst end;
            end.what = EXIT;
            k->code.push_back(end);
            k->reg_bytes = (d.reg_end + 63) & ~63u;
            mod->kernels[name] = std::move(k);
            continue;
        }
        cur += c == '\n' ? ' ' : c;
        i++;
    }
    return mod;
}
