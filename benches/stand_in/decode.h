// PTX text → instructions. Source: NVIDIA, Parallel Thread Execution ISA.
#pragma once
#include "warp.h"

static vector<string> split(const string &s, char c) {
    vector<string> r;
    string t;
    for (char x : s)
        if (x == c) {
            r.push_back(t);
            t.clear();
        } else t += x;
    r.push_back(t);
    return r;
}
static string trim(const string &s) {
    size_t a = s.find_first_not_of(" \t\n\r"), b = s.find_last_not_of(" \t\n\r");
    return a == string::npos ? "" : s.substr(a, b - a + 1);
}
static vector<string> operands_of(const string &s) {
    vector<string> r;
    string t;
    int depth = 0;
    for (char x : s) {
        if (x == '{' || x == '[' || x == '(') depth++;
        if (x == '}' || x == ']' || x == ')') depth--;
        if (x == ',' && depth == 0) {
            r.push_back(trim(t));
            t.clear();
        } else t += x;
    }
    if (!trim(t).empty()) r.push_back(trim(t));
    return r;
}
struct Reg {
    int w;
    u32 off;
    bool pred;
};
struct Sym {
    Space space;
    u64 value;
    bool param;
};
struct Scope {
    std::unordered_map<string, Reg> regs;
};

struct Decoder {
    Module &mod;
    Kernel &k;
    std::map<string, Sym> globals; // module variables
    std::map<string, Sym> locals;  // of the kernel
    vector<Scope> scopes;
    std::map<string, int> labels;
    vector<std::pair<int, string>> fixups;
    u32 reg_end = 0;

    Decoder(Module &m, Kernel &kernel) : mod(m), k(kernel) {}

    static int width_of(const string &t) {
        if (t == "pred") return 4;
        if (t.size() >= 2 && t.substr(t.size() - 2) == "16") return 2;
        if (t.size() >= 2 && t.substr(t.size() - 2) == "64") return 8;
        if (t == "b8" || t == "u8" || t == "s8") return 2;
        if (t == "b128") die("128-bit registers");
        return 4;
    }
    void declare(const string &name, const string &type) {
        int w = width_of(type);
        reg_end = (reg_end + 63) & ~63u;
        bool pred = type == "pred";
        scopes.back().regs[name] = {w, reg_end, pred};
        reg_end += pred ? 64 : w * 32;
    }
    const Reg *find(const string &n) {
        for (int i = scopes.size() - 1; i >= 0; i--) {
            auto it = scopes[i].regs.find(n);
            if (it != scopes[i].regs.end()) return &it->second;
        }
        return nullptr;
    }
    const Sym *symbol(const string &n) {
        auto it = locals.find(n);
        if (it != locals.end()) return &it->second;
        auto jt = globals.find(n);
        if (jt != globals.end()) return &jt->second;
        return nullptr;
    }
    static bool number(const string &s, u64 &out) {
        if (s.empty()) return false;
        if (s.size() > 2 && s[0] == '0' && (s[1] == 'f' || s[1] == 'F')) {
            out = strtoull(s.c_str() + 2, 0, 16);
            return true;
        }
        if (s.size() > 2 && s[0] == '0' && (s[1] == 'd' || s[1] == 'D')) {
            out = strtoull(s.c_str() + 2, 0, 16);
            return true;
        }
        if (isdigit(s[0]) || (s[0] == '-' && s.size() > 1 && isdigit(s[1]))) {
            char *e;
            out = s[0] == '-' ? (u64)strtoll(s.c_str(), &e, 0) : strtoull(s.c_str(), &e, 0);
            if (*e == 'U') e++;
            return *e == 0;
        }
        return false;
    }
    Op operand(string s) {
        Op o;
        s = trim(s);
        if (s == "_") return o;
        if (s[0] == '!') {
            o = operand(s.substr(1));
            o.neg = true;
            return o;
        }
        if (s[0] == '{') {
            o.k = VEC;
            for (auto &p : operands_of(s.substr(1, s.size() - 2))) o.v.push_back(operand(p));
            return o;
        }
        if (s[0] == '[') {
            o.k = ADDR;
            string in = trim(s.substr(1, s.size() - 2)), base = in;
            size_t p = in.find('+', 1);
            if (p != string::npos) {
                base = trim(in.substr(0, p));
                u64 n;
                if (!number(trim(in.substr(p + 1)), n)) die("offset in " + s);
                o.imm = n;
            }
            u64 n;
            if (auto r = find(base)) {
                o.has_base = true;
                o.boff = r->off;
                o.bw = r->w;
            } else if (auto y = symbol(base)) {
                o.imm += y->value;
                o.is_symbol = true;
                o.sym_space = y->space;
                o.is_param = y->param;
            } else if (number(base, n)) o.imm += n;
            else die("address " + s);
            return o;
        }
        u64 n;
        if (auto r = find(s)) {
            o.k = r->pred ? PRED : REG;
            o.w = r->w;
            o.off = r->off;
            return o;
        }
        if (number(s, n)) {
            o.k = IMM;
            o.imm = n;
            return o;
        }
        static const std::map<string, int> specials = {{"%tid.x", 0},
                                                       {"%tid.y", 1},
                                                       {"%tid.z", 2},
                                                       {"%ntid.x", 3},
                                                       {"%ntid.y", 4},
                                                       {"%ntid.z", 5},
                                                       {"%ctaid.x", 6},
                                                       {"%ctaid.y", 7},
                                                       {"%ctaid.z", 8},
                                                       {"%nctaid.x", 9},
                                                       {"%nctaid.y", 10},
                                                       {"%nctaid.z", 11},
                                                       {"%laneid", 12},
                                                       {"%warpid", 13},
                                                       {"%lanemask_eq", 14},
                                                       {"%lanemask_lt", 15},
                                                       {"%lanemask_le", 16},
                                                       {"%lanemask_gt", 17},
                                                       {"%lanemask_ge", 18},
                                                       {"%dynamic_smem_size", 19},
                                                       {"%clock64", 20},
                                                       {"%clock", 20},
                                                       {"%globaltimer", 20},
                                                       {"%cluster_ctarank", 21},
                                                       {"%cluster_ctaid.x", 21},
                                                       {"%cluster_ctaid.y", 21},
                                                       {"%cluster_ctaid.z", 21},
                                                       {"%cluster_nctaid.x", 22},
                                                       {"%cluster_nctaid.y", 22},
                                                       {"%cluster_nctaid.z", 22},
                                                       {"%smid", 21}};
        auto it = specials.find(s);
        if (it != specials.end()) {
            o.k = SPEC;
            o.spec = it->second;
            return o;
        }
        if (s == "WARP_SZ") {
            o.k = IMM;
            o.imm = 32;
            return o;
        }
        size_t p = s.find('+');
        string base = p == string::npos ? s : trim(s.substr(0, p));
        if (auto y = symbol(base)) {
            o.k = IMM;
            o.imm = y->value;
            o.is_symbol = true;
            o.sym_space = y->space;
            o.is_param = y->param;
            if (p != string::npos) {
                u64 m;
                number(trim(s.substr(p + 1)), m);
                o.imm += m;
            }
            return o;
        }
        die("operand `" + s + "`");
    }

    static Space space_in(const vector<string> &parts) {
        for (auto &p : parts) {
            if (p == "global") return GLOBAL;
            if (p.rfind("shared", 0) == 0) return SHARED;
            if (p == "local") return LOCAL;
            if (p.rfind("param", 0) == 0) return PARAM;
            if (p == "const") return CONST;
        }
        return GENERIC;
    }
    void statement(string s);
    void instruction(const string &s);
    Fn build(const string &opcode, const vector<string> &p, vector<Op> &o, Inst &inst, const string &text);
    void variable(const string &s, std::map<string, Sym> &into);
};

static int bytes_of(const string &t) {
    if (t == "b8" || t == "u8" || t == "s8") return 1;
    if (t == "b16" || t == "u16" || t == "s16" || t == "f16" || t == "bf16") return 2;
    if (t == "b64" || t == "u64" || t == "s64" || t == "f64") return 8;
    if (t == "b128") return 16;
    return 4;
}
static bool is_type(const string &t) {
    static const std::set<string> s = {"b8",   "u8",  "s8",  "b16", "u16", "s16",   "f16",
                                       "bf16", "b32", "u32", "s32", "f32", "f16x2", "bf16x2",
                                       "tf32", "b64", "u64", "s64", "f64", "b128",  "pred"};
    return s.count(t);
}

// `.shared .align 16 .b8 name[123]` and the like.
void Decoder::variable(const string &s, std::map<string, Sym> &into) {
    string decl = s, init;
    size_t eq = s.find('=');
    if (eq != string::npos) {
        decl = trim(s.substr(0, eq));
        init = trim(s.substr(eq + 1));
    }
    vector<string> words;
    {
        string t;
        for (char c : decl) {
            if (isspace(c)) {
                if (!t.empty()) words.push_back(t);
                t.clear();
            } else t += c;
        }
        if (!t.empty()) words.push_back(t);
    }
    Space space = GENERIC;
    u32 align = 4;
    int elem = 4;
    bool ext = false;
    string name;
    for (size_t i = 0; i < words.size(); i++) {
        string w = words[i];
        if (w == ".global") space = GLOBAL;
        else if (w == ".const") space = CONST;
        else if (w == ".shared") space = SHARED;
        else if (w == ".local") space = LOCAL;
        else if (w == ".extern") ext = true;
        else if (w == ".visible" || w == ".weak") {
        } else if (w == ".align") align = atoi(words[++i].c_str());
        else if (w[0] == '.') elem = bytes_of(w.substr(1));
        else name = w;
    }
    u64 count = 1;
    bool open = false;
    size_t br = name.find('[');
    if (br != string::npos) {
        string n = name.substr(br + 1);
        name = name.substr(0, br);
        if (n[0] == ']') open = true;
        else count = strtoull(n.c_str(), 0, 0);
    }
    u64 bytes = count * elem;
    if (space == SHARED) {
        if (ext || open) {
            into[name] = {SHARED, (u64)-1, false};
            return;
        } // dynamic: fixed later
        k.static_shared = (k.static_shared + align - 1) / align * align;
        into[name] = {SHARED, k.static_shared, false};
        k.static_shared += bytes;
        return;
    }
    if (space == LOCAL) {
        k.local_size = (k.local_size + align - 1) / align * align;
        into[name] = {LOCAL, k.local_size, false};
        k.local_size += bytes;
        k.local_size = (k.local_size + 15) & ~15u;
        return;
    }
    if (into.count(name)) return;
    vector<u64> values;
    if (!init.empty())
        for (auto &v : operands_of(init[0] == '{' ? init.substr(1, init.size() - 2) : init)) {
            u64 n = 0;
            if (!number(v, n)) die("initialiser " + v);
            values.push_back(n);
        }
    if (open) bytes = values.size() * elem;
    u8 *m = (u8 *)aligned_alloc(256, (bytes + 511) / 256 * 256);
    memset(m, 0, bytes + 16);
    for (size_t i = 0; i < values.size(); i++) memcpy(m + i * elem, &values[i], elem);
    {
        std::unique_lock l(mem_lock);
        allocations[(u64)m] = {bytes, device};
        epoch++;
    }
    into[name] = {space, (u64)m, false};
}

void Decoder::statement(string s) {
    s = trim(s);
    if (s.empty()) return;
    if (s[0] == '.') {
        if (s.rfind(".reg", 0) == 0) {
            vector<string> w;
            string rest;
            size_t p = s.find('.', 1);
            size_t e = s.find_first_of(" \t", p);
            string type = s.substr(p + 1, e - p - 1);
            if (type.rfind("v2", 0) == 0 || type.rfind("v4", 0) == 0) die("vector registers");
            for (auto &n : operands_of(s.substr(e))) {
                size_t a = n.find('<');
                if (a == string::npos) declare(trim(n), type);
                else {
                    int c = atoi(n.c_str() + a + 1);
                    string b = trim(n.substr(0, a));
                    for (int i = 0; i < c; i++) declare(b + std::to_string(i), type);
                }
            }
            return;
        }
        if (s.rfind(".shared", 0) == 0 || s.rfind(".local", 0) == 0 || s.rfind(".const", 0) == 0 ||
            s.rfind(".global", 0) == 0) {
            variable(s, locals);
            return;
        }
        if (s.rfind(".pragma", 0) == 0) return;
        die("directive " + s);
    }
    instruction(s);
}

void Decoder::instruction(const string &text) {
    Inst in;
    in.text = std::make_shared<string>(text);
    string s = text;
    if (s[0] == '@') {
        size_t e = s.find_first_of(" \t");
        string g = s.substr(1, e - 1);
        if (g[0] == '!') {
            in.guard_neg = true;
            g = g.substr(1);
        }
        auto r = find(g);
        if (!r) die("guard " + g);
        in.guard = r->off;
        s = trim(s.substr(e));
    }
    size_t e = s.find_first_of(" \t\n");
    string opcode = e == string::npos ? s : s.substr(0, e);
    string rest = e == string::npos ? "" : trim(s.substr(e));
    auto p = split(opcode, '.');
    if (p[0] == "bra") {
        in.what = BRA;
        fixups.push_back({(int)k.code.size(), trim(rest)});
        k.code.push_back(std::move(in));
        return;
    }
    if (p[0] == "ret" || p[0] == "exit") {
        in.what = EXIT;
        k.code.push_back(std::move(in));
        return;
    }
    if (p[0] == "bar" && p[1] == "warp") {
        in.what = WARP_BAR;
        k.code.push_back(std::move(in));
        return;
    }
    if (p[0] == "bar" || p[0] == "barrier") {
        if (p[0] == "barrier" && p[1] == "cluster") { // one block to a cluster
            in.what = NORMAL;
            in.run = [](Warp &, u32) {};
            k.code.push_back(std::move(in));
            return;
        }
        in.what = BAR;
        auto ops = operands_of(rest);
        Op a = ops.empty() ? Op{} : operand(ops[0]);
        in.arrive_only = opcode.find("arrive") != string::npos;
        if (a.k == IMM) in.bar = a.imm;
        else if (a.k == REG) {
            in.dynamic_bar = true;
            in.bar_op = a;
        }
        if (ops.size() > 1) { in.count_op = operand(ops[1]); }
        if (opcode.find("red") != string::npos) die("barrier with reduction: " + text);
        k.code.push_back(std::move(in));
        return;
    }
    vector<Op> ops;
    vector<string> raw = operands_of(rest);
    // `p|q` of setp and shfl
    for (size_t i = 0; i < raw.size(); i++) {
        size_t bar = raw[i].find('|');
        if (bar != string::npos && raw[i][0] != '[' && raw[i][0] != '{') {
            Op o;
            o.k = VEC;
            o.v = {operand(raw[i].substr(0, bar)), operand(raw[i].substr(bar + 1))};
            ops.push_back(o);
        } else if (p[0] == "call") ops.push_back(Op{});
        else if (raw[i][0] == '[' &&
                 raw[i].find('{') != string::npos) { // a tensor map's address: [map, {coordinates}]
            auto in2 = operands_of(raw[i].substr(1, raw[i].size() - 2));
            Op o;
            o.k = VEC;
            o.v = {operand("[" + in2[0] + "]"), operand(in2[1])};
            ops.push_back(o);
        } else ops.push_back(operand(raw[i]));
    }
    in.run = build(opcode, p, ops, in, text);
    k.code.push_back(std::move(in));
}
