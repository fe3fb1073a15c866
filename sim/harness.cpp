// Native bench around one Verilated top: streams, memories (AXI4, DRAM banks), registers, probes, a waveform.
//
// sim/rtlsim.py writes a job (job.txt, arrays as little-endian files beside it), runs this program in
// that directory and reads what it leaves (out.txt and arrays). Nothing in the loop allocates (vectors
// are reserved) or formats text, except to report a violation.
//
// A cycle: drive inputs, settle with the clock low, look at the handshakes, rising edge. Cycle 0 is
// the first edge after reset and prologue.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "harness.h"

namespace {

using Bytes = std::vector<uint8_t>;

[[noreturn]] void die(const std::string& message) {
    std::cerr << "harness: " << message << "\n";
    std::exit(3);
}

template <typename T>
std::vector<T> load(const std::string& file) {
    std::vector<T> values;
    if (file == "-") return values;
    std::ifstream in(file, std::ios::binary | std::ios::ate);
    if (!in) die("cannot read " + file);
    values.resize(static_cast<size_t>(in.tellg()) / sizeof(T));
    in.seekg(0);
    in.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
    return values;
}

template <typename T>
void save(const std::string& file, const std::vector<T>& values) {
    std::ofstream out(file, std::ios::binary);
    out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
    if (!out) die("cannot write " + file);
}

uint64_t value_of(const Port& port) {
    uint64_t value = 0;
    std::memcpy(&value, port.data, port.bytes < 8 ? port.bytes : 8);
    return value;
}

// Watches one output stream: what is offered stays, unchanged, until it is taken.
struct Rule {
    const char* name = nullptr;
    Port valid, data, last;
    Bytes held_data;
    uint8_t held_last = 0;
    bool held = false;
};

struct Source {
    std::string name;
    Port data, last, valid, ready;
    std::vector<int64_t> arrivals;
    Bytes beats, lasts;
    size_t count = 0, sent = 0;
    bool offered = false;
    std::vector<int64_t> cycles;
};

struct Sink {
    std::string name;
    Port data, last, valid, ready;
    int64_t expected = -1;
    Bytes pattern;
    size_t position = 0;
    Rule rule;
    std::vector<int64_t> cycles;
    Bytes beats, lasts;
};

struct Burst {
    uint64_t addr;
    uint32_t beats, done;
    int64_t due;
};

// AXI4 read memory. An address accepted in cycle c has its first beat offered in cycle c + latency (+ extra)
// at the earliest; one beat a cycle (+ gap); bursts in order.
struct Memory {
    std::string name;
    Port araddr, arlen, arvalid, arready, rdata, rresp, rlast, rvalid, rready;
    const uint8_t* image = nullptr;
    uint64_t image_bytes = 0;
    int64_t latency = 1;
    size_t max_outstanding = 1;
    std::vector<int64_t> extra, gaps;
    std::vector<uint8_t> pattern;  // of arready, from cycle 0 on
    std::vector<uint8_t> responses;
    std::vector<Burst> ring;
    size_t head = 0, outstanding = 0, bursts = 0, beats = 0;
    int64_t free_at = 0;
    bool offered = false;
    Rule rule;
    std::vector<int64_t> ar_cycles, r_cycles;
    std::vector<uint64_t> ar_addrs;
};

// Banks of weights: what is asked for in cycle c stands at the data port in cycle c + latency, and in
// that cycle alone; otherwise the port shows a pattern that no weight is likely to have.
struct Banks {
    std::string name;
    Port en, addr, data;
    const uint8_t* image = nullptr;
    uint64_t image_bytes = 0;
    size_t latency = 1;
    std::vector<int64_t> pending;  // per cycle modulo its size: the address asked for, or -1
    bool idle = false;
};

struct Set {
    Port port;
    Bytes value;
};

struct Step {
    std::string kind;  // set, wait, read
    std::vector<Set> sets;
    Port port;
    uint64_t mask = 0, value = 0;
    int64_t timeout = 0;
};

struct Write {
    int64_t cycle;
    Set set;
};

struct Probe {
    std::string name;
    Port port;
    std::vector<int64_t> cycles;
    std::vector<uint64_t> values;
};

struct Phase {
    int64_t reset_cycles = 4, max_cycles = 0, settle = 0, stop_cycle = -1;
    std::vector<Source> sources;
    std::vector<Sink> sinks;
    std::vector<Memory> memories;
    std::vector<Banks> banks;
    std::vector<Set> statics;
    std::vector<Write> writes;
    std::vector<Step> prologue, epilogue;
    std::vector<Probe> probes;
    Port until;
};

struct Job {
    uint64_t seed = 1;
    std::string vcd;
    size_t vcd_phase = 0;
    int64_t vcd_from = 0, vcd_to = -1;
    std::vector<Phase> phases;
};

class Parser {
  public:
    Parser(const std::map<std::string, Port>& ports, const std::string& file) : ports_(ports), in_(file) {}

    Job parse(Job job) {
        std::string word;
        while (in_ >> word) {
            if (word == "phase") job.phases.emplace_back();
            if (word == "phase") continue;
            Phase& phase = job.phases.back();
            if (word == "limits") {
                in_ >> phase.reset_cycles >> phase.max_cycles >> phase.settle >> phase.stop_cycle;
            } else if (word == "source") {
                Source s;
                in_ >> s.name;
                s.data = port(), s.last = port(), s.valid = port(), s.ready = port();
                s.arrivals = load<int64_t>(text()), s.beats = load<uint8_t>(text()), s.lasts = load<uint8_t>(text());
                s.count = s.arrivals.size();
                s.cycles.reserve(s.count);
                phase.sources.push_back(std::move(s));
            } else if (word == "sink") {
                Sink s;
                in_ >> s.name;
                s.data = port(), s.last = port(), s.valid = port(), s.ready = port();
                in_ >> s.expected;
                s.pattern = load<uint8_t>(text());
                const size_t room = s.expected < 0 ? 1024 : static_cast<size_t>(s.expected) + 16;
                s.cycles.reserve(room), s.lasts.reserve(room), s.beats.reserve(room * s.data.bytes);
                s.rule = {nullptr, s.valid, s.data, s.last, Bytes(s.data.bytes), 0, false};
                phase.sinks.push_back(std::move(s));
            } else if (word == "memory") {
                phase.memories.push_back(memory());
            } else if (word == "banks") {
                phase.banks.push_back(banks());
            } else if (word == "static") {
                phase.statics.push_back(set());
            } else if (word == "write") {
                Write w;
                in_ >> w.cycle;
                w.set = set();
                phase.writes.push_back(std::move(w));
            } else if (word == "prologue") {
                phase.prologue.push_back(step());
            } else if (word == "epilogue") {
                phase.epilogue.push_back(step());
            } else if (word == "probe") {
                Probe p;
                in_ >> p.name;
                p.port = find(p.name);
                phase.probes.push_back(std::move(p));
            } else if (word == "until") {
                phase.until = port();
            } else {
                die("unknown word in the job: " + word);
            }
        }
        return job;
    }

  private:
    std::string text() {
        std::string word;
        in_ >> word;
        return word;
    }
    Port find(const std::string& name) {
        if (name == "-") return {};
        auto found = ports_.find(name);
        if (found == ports_.end()) die("no port " + name);
        return found->second;
    }
    Port port() { return find(text()); }
    Set set() {
        Set s{port(), {}};
        const std::string hex = text();  // little-endian bytes
        for (size_t i = 0; i + 1 < hex.size(); i += 2)
            s.value.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
        if (s.value.size() != s.port.bytes) die("value of another size than its port");
        return s;
    }
    Step step() {
        Step s;
        in_ >> s.kind;
        if (s.kind == "wait") {
            s.port = port();
            in_ >> s.mask >> s.value >> s.timeout;
        } else if (s.kind == "read") {
            s.port = port();
        }
        size_t count = 0;
        in_ >> count;
        for (size_t i = 0; i < count; ++i) s.sets.push_back(set());
        return s;
    }
    static const uint8_t* map(const std::string& image, uint64_t& bytes) {
        const int file = open(image.c_str(), O_RDONLY);
        struct stat status {};
        if (file < 0 || fstat(file, &status) != 0) die("cannot read " + image);
        bytes = static_cast<uint64_t>(status.st_size);
        void* mapped = nullptr;
        if (bytes > 0) {
            mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
            if (mapped == MAP_FAILED) die("cannot map " + image);
        }
        close(file);
        return static_cast<const uint8_t*>(mapped);
    }
    Banks banks() {
        Banks b;
        in_ >> b.name;
        b.en = find(b.name + "_en"), b.addr = find(b.name + "_addr"), b.data = find(b.name + "_data");
        b.image = map(text(), b.image_bytes);
        in_ >> b.latency;
        b.pending.assign(b.latency + 1, -1);
        return b;
    }
    Memory memory() {
        Memory m;
        in_ >> m.name;
        const std::string prefix = text() + "_";
        m.araddr = find(prefix + "araddr"), m.arlen = find(prefix + "arlen");
        m.arvalid = find(prefix + "arvalid"), m.arready = find(prefix + "arready");
        m.rdata = find(prefix + "rdata"), m.rresp = find(prefix + "rresp"), m.rlast = find(prefix + "rlast");
        m.rvalid = find(prefix + "rvalid"), m.rready = find(prefix + "rready");
        m.image = map(text(), m.image_bytes);
        in_ >> m.latency >> m.max_outstanding;
        m.extra = load<int64_t>(text()), m.gaps = load<int64_t>(text());
        m.pattern = load<uint8_t>(text()), m.responses = load<uint8_t>(text());
        m.ring.resize(m.max_outstanding);
        m.rule = {nullptr, m.arvalid, m.araddr, m.arlen, Bytes(m.araddr.bytes), 0, false};
        m.ar_cycles.reserve(1 << 16), m.ar_addrs.reserve(1 << 16), m.r_cycles.reserve(1 << 20);
        return m;
    }

    const std::map<std::string, Port>& ports_;
    std::ifstream in_;
};

class Bench {
  public:
    Bench(const std::map<std::string, Port>& ports, const Job& job)
        : ports_(ports), job_(job), clock_(ports.at("aclk")) {}

    void run(Phase& phase, size_t index, std::ofstream& out) {
        phase_ = &phase, index_ = index, now_ = 0, zero_ = 0, running_ = false;
        violations_.clear();
        for (auto& s : phase.sinks) s.rule.name = s.name.c_str();
        for (auto& m : phase.memories) m.rule.name = m.name.c_str();
        const auto start = std::chrono::steady_clock::now();
        reset();
        std::vector<uint64_t> before, after;
        int64_t stopped = run_steps(phase.prologue, before);
        std::string timeout = stopped < 0 ? "" : "prologue " + std::to_string(stopped);
        int64_t done = 0;
        zero_ = now_;
        if (timeout.empty() && !stream_beats(done)) timeout = "streams";
        const int64_t ran = now_ - zero_;
        if (timeout.empty()) {
            stopped = run_steps(phase.epilogue, after);
            if (stopped >= 0) timeout = "epilogue " + std::to_string(stopped);
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        out << "phase " << index << "\ncycles " << done << "\nran " << ran << "\nzero " << zero_ << "\nsimulated "
            << now_ << "\nseconds " << seconds.count() << "\ntime_ns " << zero_time_ << "\n";
        if (!timeout.empty()) out << "timeout " << timeout << "\n";
        for (auto value : before) out << "read " << value << "\n";
        for (auto value : after) out << "read " << value << "\n";
        for (auto& violation : violations_) out << "violation " << violation << "\n";
        dump();
    }

  private:
    static void put(const Port& port, const uint8_t* value) { std::memcpy(port.data, value, port.bytes); }
    static void put_bit(const Port& port, bool value) { *port.data = value; }
    static bool bit(const Port& port) { return *port.data & 1; }

    void violation(const char* name, const char* what) {
        if (violations_.size() >= 20) return;
        std::ostringstream text;
        text << name << ": " << what << " in cycle " << now_ - zero_ << (running_ ? "" : " (outside the run)");
        violations_.push_back(text.str());
    }

    void settle_low() {
        *clock_.data = 0;
        top_eval();
        wave();
    }

    void rise() {
        *clock_.data = 1;
        top_eval();
        wave();
        ++now_;
        ++total_;
    }

    void wave() {
        if (job_.vcd.empty() || index_ != job_.vcd_phase) return;
        const int64_t cycle = now_ - zero_;
        const bool inside = running_ ? job_.vcd_from <= cycle && cycle <= job_.vcd_to : job_.vcd_from < 0;
        if (inside) top_wave(job_.vcd.c_str(), static_cast<uint64_t>(total_ * 10 + (*clock_.data ? 5 : 0)));
    }

    void reset() {
        for (auto& entry : ports_)
            if (entry.second.input) std::memset(entry.second.data, 0, entry.second.bytes);
        for (auto& s : phase_->statics) put(s.port, s.value.data());
        const Port& reset_n = ports_.at("aresetn");
        put_bit(reset_n, false);
        for (int64_t i = 0; i < phase_->reset_cycles; ++i) settle_low(), rise();
        put_bit(reset_n, true);
        now_ = 0;
    }

    // Everything up to the rising edge; the caller may look at outputs before post().
    void pre() {
        if (running_) {
            const int64_t cycle = now_ - zero_;
            while (next_write_ < phase_->writes.size() && phase_->writes[next_write_].cycle <= cycle) {
                const Set& set = phase_->writes[next_write_++].set;
                put(set.port, set.value.data());
            }
            for (auto& s : phase_->sources) {
                if (s.offered) continue;
                s.offered = s.sent < s.count && s.arrivals[s.sent] <= cycle;
                if (s.offered) {
                    put(s.data, &s.beats[s.sent * s.data.bytes]);
                    if (s.last.data) *s.last.data = s.lasts[s.sent];
                }
                put_bit(s.valid, s.offered);
            }
            for (auto& s : phase_->sinks) {
                bool ready = true;
                if (!s.pattern.empty()) {
                    ready = s.pattern[s.position];
                    if (++s.position == s.pattern.size()) s.position = 0;
                }
                put_bit(s.ready, ready);
            }
        }
        for (auto& m : phase_->memories) drive(m);
        for (auto& b : phase_->banks) drive(b);
        settle_low();
    }

    void post() {
        if (running_) {
            for (auto& s : phase_->sources) {
                if (!s.offered || !bit(s.ready)) continue;
                s.cycles.push_back(now_ - zero_);
                ++s.sent;
                s.offered = false;
                ++moved_;
            }
        }
        for (auto& s : phase_->sinks) {
            const bool taken = running_ && bit(s.ready);
            watch(s.rule, taken);
            if (!taken || !bit(s.valid)) continue;
            s.cycles.push_back(now_ - zero_);
            s.beats.insert(s.beats.end(), s.data.data, s.data.data + s.data.bytes);
            if (s.last.data) s.lasts.push_back(*s.last.data);
            ++moved_;
            if (s.expected >= 0 && static_cast<int64_t>(s.cycles.size()) > s.expected)
                violation(s.name.c_str(), "extra beat");
        }
        for (auto& m : phase_->memories) sample(m);
        for (auto& b : phase_->banks) sample(b);
        if (running_) {
            for (auto& p : phase_->probes) {
                const uint64_t value = value_of(p.port);
                if (value) p.cycles.push_back(now_ - zero_), p.values.push_back(value);
            }
            if (phase_->until.data && value_of(phase_->until)) reached_ = true;
        }
        rise();
    }

    void watch(Rule& rule, bool ready) {
        const bool valid = bit(rule.valid);
        if (rule.held) {
            if (!valid) {
                violation(rule.name, "valid fell before the beat was taken");
            } else if (std::memcmp(rule.held_data.data(), rule.data.data, rule.data.bytes) != 0 ||
                       (rule.last.data && *rule.last.data != rule.held_last)) {
                violation(rule.name, "payload changed before the beat was taken");
            }
        }
        rule.held = valid && !ready;
        if (rule.held) {
            std::memcpy(rule.held_data.data(), rule.data.data, rule.data.bytes);
            if (rule.last.data) rule.held_last = *rule.last.data;
        }
    }

    void drive(Memory& m) {
        bool ready = m.outstanding < m.max_outstanding;
        if (running_ && !m.pattern.empty()) ready &= m.pattern[(now_ - zero_) % m.pattern.size()];
        put_bit(m.arready, ready);
        if (m.offered) return;
        const Burst& burst = m.ring[m.head];
        m.offered = m.outstanding > 0 && now_ >= burst.due && now_ >= m.free_at;
        put_bit(m.rvalid, m.offered);
        if (!m.offered) return;
        const uint64_t addr = burst.addr + static_cast<uint64_t>(burst.done) * m.rdata.bytes;
        if (addr + m.rdata.bytes <= m.image_bytes) {
            put(m.rdata, m.image + addr);
        } else {
            std::memset(m.rdata.data, 0, m.rdata.bytes);
            violation(m.name.c_str(), "read beyond the memory image");
        }
        put_bit(m.rlast, burst.done + 1 == burst.beats);
        *m.rresp.data = m.responses.empty() ? 0 : m.responses[m.beats % m.responses.size()];
    }

    void sample(Memory& m) {
        const bool accepted = bit(m.arready);
        watch(m.rule, accepted);
        if (m.offered && bit(m.rready)) {
            m.offered = false;
            m.r_cycles.push_back(now_);
            const int64_t gap = m.gaps.empty() ? 0 : m.gaps[m.beats % m.gaps.size()];
            m.free_at = now_ + 1 + gap;
            ++m.beats;
            Burst& burst = m.ring[m.head];
            if (++burst.done == burst.beats) {
                m.head = (m.head + 1) % m.max_outstanding;
                --m.outstanding;
            }
        }
        if (accepted && bit(m.arvalid)) {
            const int64_t extra = m.extra.empty() ? 0 : m.extra[m.bursts % m.extra.size()];
            const uint64_t addr = value_of(m.araddr);
            const uint32_t beats = static_cast<uint32_t>(value_of(m.arlen)) + 1;
            if (addr % m.rdata.bytes) violation(m.name.c_str(), "unaligned burst");
            if ((addr & 4095) + beats * m.rdata.bytes > 4096) violation(m.name.c_str(), "burst across 4 KiB");
            m.ring[(m.head + m.outstanding) % m.max_outstanding] = {addr, beats, 0, now_ + m.latency + extra};
            ++m.outstanding;
            ++m.bursts;
            m.ar_cycles.push_back(now_);
            m.ar_addrs.push_back(addr);
        }
    }

    void drive(Banks& b) {
        int64_t& due = b.pending[static_cast<size_t>(now_) % b.pending.size()];
        if (due >= 0) {
            const uint64_t start = static_cast<uint64_t>(due) * b.data.bytes;
            if (start + b.data.bytes <= b.image_bytes) {
                put(b.data, b.image + start);
            } else {
                std::memset(b.data.data, 0, b.data.bytes);
                violation(b.name.c_str(), "read beyond the banks' image");
            }
            b.idle = false;
        } else if (!b.idle) {
            std::memset(b.data.data, 0xA5, b.data.bytes);
            b.idle = true;
        }
        due = -1;
    }

    void sample(Banks& b) {
        bool asked = false;
        for (size_t i = 0; i < b.en.bytes; ++i) asked |= b.en.data[i] != 0;
        if (!asked) return;
        b.pending[(static_cast<size_t>(now_) + b.latency) % b.pending.size()] = static_cast<int64_t>(value_of(b.addr));
    }

    // Return the index of the step that timed out, or -1.
    int64_t run_steps(std::vector<Step>& steps, std::vector<uint64_t>& reads) {
        for (size_t index = 0; index < steps.size(); ++index) {
            Step& step = steps[index];
            std::vector<Set> former;
            for (auto& s : step.sets) {
                former.push_back({s.port, Bytes(s.port.data, s.port.data + s.port.bytes)});
                put(s.port, s.value.data());
            }
            pre();
            post();
            bool met = step.kind != "wait";
            for (int64_t waited = 1; !met && waited <= step.timeout; ++waited) {
                pre();
                met = (value_of(step.port) & step.mask) == step.value;
                post();
            }
            for (auto s = former.rbegin(); s != former.rend(); ++s) put(s->port, s->value.data());
            if (!met) return static_cast<int64_t>(index);
            if (step.kind == "read") {
                pre();
                reads.push_back(value_of(step.port));
                post();
            }
        }
        return -1;
    }

    // Run the streams; false on a timeout. `done`: cycles up to and including the last wanted transfer.
    bool stream_beats(int64_t& done) {
        running_ = true;
        next_write_ = 0;
        moved_ = 0;
        reached_ = !phase_->until.data;
        size_t wanted = 0;
        bool finished = false;
        for (auto& s : phase_->sources) wanted += s.count;
        for (auto& s : phase_->sinks) wanted += s.expected < 0 ? 0 : static_cast<size_t>(s.expected);
        int64_t left = phase_->settle;
        zero_time_ = total_ * 10;
        while (true) {
            const int64_t cycle = now_ - zero_;
            if (cycle == phase_->stop_cycle) {
                if (!finished) done = cycle;
                break;
            }
            if (!finished && moved_ >= wanted && reached_ && complete()) {
                finished = true;
                done = cycle;
            }
            if (finished && left-- == 0) break;
            if (!finished && cycle >= phase_->max_cycles) {
                done = cycle;
                running_ = false;
                return false;
            }
            pre();
            post();
        }
        running_ = false;
        for (auto& s : phase_->sources) put_bit(s.valid, false);
        for (auto& s : phase_->sinks) put_bit(s.ready, false);
        return true;
    }

    bool complete() const {
        for (auto& s : phase_->sources)
            if (s.sent < s.count) return false;
        for (auto& s : phase_->sinks)
            if (static_cast<int64_t>(s.cycles.size()) < s.expected) return false;
        return true;
    }

    void dump() {
        const std::string prefix = "p" + std::to_string(index_) + "_";
        for (auto& s : phase_->sources) save(prefix + s.name + ".cycles", s.cycles);
        for (auto& s : phase_->sinks) {
            save(prefix + s.name + ".cycles", s.cycles);
            save(prefix + s.name + ".beats", s.beats);
            save(prefix + s.name + ".lasts", s.lasts);
        }
        for (auto& m : phase_->memories) {
            for (auto& cycle : m.ar_cycles) cycle -= zero_;
            for (auto& cycle : m.r_cycles) cycle -= zero_;
            save(prefix + m.name + ".ar_cycles", m.ar_cycles);
            save(prefix + m.name + ".ar_addrs", m.ar_addrs);
            save(prefix + m.name + ".r_cycles", m.r_cycles);
            if (m.image) munmap(const_cast<uint8_t*>(m.image), m.image_bytes);
        }
        for (auto& b : phase_->banks)
            if (b.image) munmap(const_cast<uint8_t*>(b.image), b.image_bytes);
        for (auto& p : phase_->probes) {
            save(prefix + p.name + ".probe_cycles", p.cycles);
            save(prefix + p.name + ".probe_values", p.values);
        }
    }

    const std::map<std::string, Port>& ports_;
    const Job& job_;
    const Port clock_;
    Phase* phase_ = nullptr;
    size_t index_ = 0, next_write_ = 0, moved_ = 0;
    // Cycles since reset, the value of that in cycle 0, cycles since the program started.
    int64_t now_ = 0, zero_ = 0, total_ = 0, zero_time_ = 0;
    bool running_ = false, reached_ = false;
    std::vector<std::string> violations_;
};

// Read what must be known before the model is made (the seed of its registers) and the waveform window.
Job read_options(const char* file) {
    Job job;
    std::ifstream in(file);
    if (!(in >> job.seed)) die("no job");
    std::string vcd;
    in >> vcd >> job.vcd_phase >> job.vcd_from >> job.vcd_to;
    if (vcd != "-") job.vcd = vcd;
    return job;
}

}  // namespace

int main() {
    Job job = read_options("options.txt");
    const auto ports = top_open(job.seed, !job.vcd.empty());
    job = Parser(ports, "job.txt").parse(std::move(job));
    Bench bench(ports, job);
    std::ofstream out("out.txt");
    for (size_t index = 0; index < job.phases.size(); ++index) bench.run(job.phases[index], index, out);
    top_close();
    out << "end\n";
    return out ? 0 : 3;
}
