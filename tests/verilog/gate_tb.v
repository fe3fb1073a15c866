// A bench for `expertbank verilog --bus axi --design gate`, written by hand in plain Verilog-2005 from docs/axi.md,
// docs/gating.md and gate_axi.ports.json: 16 experts of which 2 are chosen, d_model 64, bf16.
`timescale 1ns / 1ps
module gate_tb;
    reg aclk = 0, aresetn = 0;
    always #5 aclk = ~aclk;

    reg [11:0] awaddr = 0, araddr = 0;
    reg [31:0] wdata = 0;
    reg awvalid = 0, wvalid = 0, bready = 0, arvalid = 0, rready = 0;
    wire awready, wready, bvalid, arready, rvalid, irq;
    wire [1:0] bresp, rresp;
    wire [31:0] rdata;
    wire [39:0] m_araddr;
    wire [7:0] m_arlen;
    wire [2:0] m_arsize;
    wire [1:0] m_arburst;
    wire m_arvalid, m_rready;
    reg m_arready = 0, m_rlast = 0, m_rvalid = 0;
    reg [255:0] m_rdata = 0;
    reg [255:0] tdata = 0;
    reg tlast = 0, tvalid = 0;
    wire tready, olast, ovalid, ouser;
    wire [23:0] odata;

    eb_gate_axi dut (
        .aclk(aclk), .aresetn(aresetn), .irq(irq),
        .s_axi_awaddr(awaddr), .s_axi_awprot(3'd0), .s_axi_awvalid(awvalid), .s_axi_awready(awready),
        .s_axi_wdata(wdata), .s_axi_wstrb(4'hf), .s_axi_wvalid(wvalid), .s_axi_wready(wready),
        .s_axi_bresp(bresp), .s_axi_bvalid(bvalid), .s_axi_bready(bready),
        .s_axi_araddr(araddr), .s_axi_arprot(3'd0), .s_axi_arvalid(arvalid), .s_axi_arready(arready),
        .s_axi_rdata(rdata), .s_axi_rresp(rresp), .s_axi_rvalid(rvalid), .s_axi_rready(rready),
        .s_axis_tdata(tdata), .s_axis_tlast(tlast), .s_axis_tvalid(tvalid), .s_axis_tready(tready),
        .m_axis_tdata(odata), .m_axis_tlast(olast), .m_axis_tuser(ouser), .m_axis_tvalid(ovalid), .m_axis_tready(1'b1),
        .m_axi_arid(), .m_axi_arprot(), .m_axi_arcache(), .m_axi_rid(1'b0),
        .m_axi_araddr(m_araddr), .m_axi_arlen(m_arlen), .m_axi_arsize(m_arsize), .m_axi_arburst(m_arburst),
        .m_axi_arvalid(m_arvalid), .m_axi_arready(m_arready),
        .m_axi_rdata(m_rdata), .m_axi_rresp(2'd0), .m_axi_rlast(m_rlast), .m_axi_rvalid(m_rvalid), .m_axi_rready(m_rready)
    );

    // The router's image: for each step of 16 inputs, for each expert, 16 weights.
    reg [15:0] image [0:4095];
    integer i, s, e, c;

    function [15:0] bf16_of;
        input integer v;
        integer n;
        begin
            n = 0;
            while ((v >> (n + 1)) != 0) n = n + 1;
            bf16_of = v == 0 ? 0 : ((127 + n) << 7) | (((v << 7) >> n) & 7'h7f);
        end
    endfunction

    function integer weight;
        input integer expert, element;
        case (element)
            0: weight = expert;
            17: weight = 15 - expert;
            40: weight = expert == 5 ? 8 : expert == 9 ? 7 : 0;
            63: weight = 1;
            default: weight = 0;
        endcase
    endfunction

    initial begin
        for (i = 0; i < 4096; i = i + 1) image[i] = 0;
        for (s = 0; s < 4; s = s + 1)
            for (e = 0; e < 16; e = e + 1)
                for (c = 0; c < 16; c = c + 1) image[(s * 16 + e) * 16 + c] = bf16_of(weight(e, s * 16 + c));
    end

    // A memory that holds the image from page 3 on and serves one burst at a time.
    reg [39:0] address;
    integer beats, k;
    initial forever begin
        @(posedge aclk);
        if (m_arvalid) begin
            address = m_araddr;
            beats = m_arlen + 1;
            if (m_arsize != 5 || m_arburst != 1) fail(4);
            m_arready <= 1;
            @(posedge aclk);
            m_arready <= 0;
            repeat (3) @(posedge aclk);
            while (beats > 0) begin
                for (k = 0; k < 16; k = k + 1) m_rdata[16 * k +: 16] <= image[(address - 40'h3000) / 2 + k];
                m_rlast <= beats == 1;
                m_rvalid <= 1;
                @(posedge aclk);
                while (!m_rready) @(posedge aclk);
                m_rvalid <= 0;
                address = address + 32;
                beats = beats - 1;
            end
        end
    end

    task fail;
        input integer what;
        begin
            $display("FAIL: %0d", what);
            $finish;
        end
    endtask

    task write;
        input [11:0] register;
        input [31:0] value;
        begin
            awaddr <= register;
            wdata <= value;
            awvalid <= 1;
            wvalid <= 1;
            bready <= 1;
            @(posedge aclk);
            while (!(awready && wready)) @(posedge aclk);
            awvalid <= 0;
            wvalid <= 0;
            while (!bvalid) @(posedge aclk);
            if (bresp != 0) fail(1);
            bready <= 0;
            @(posedge aclk);
        end
    endtask

    reg [31:0] got;
    task read;
        input [11:0] register;
        begin
            araddr <= register;
            arvalid <= 1;
            rready <= 1;
            @(posedge aclk);
            while (!arready) @(posedge aclk);
            arvalid <= 0;
            while (!rvalid) @(posedge aclk);
            if (rresp != 0) fail(2);
            got = rdata;
            rready <= 0;
            @(posedge aclk);
        end
    endtask

    // A token whose element is 1.0 and all others 0: its logits are that element's weights.
    task send;
        input integer element;
        input last;
        integer b;
        begin
            for (b = 0; b < 4; b = b + 1) begin
                tdata <= 0;
                if (element / 16 == b) tdata[16 * (element % 16) +: 16] <= 16'h3f80;
                tlast <= last && b == 3;
                tvalid <= 1;
                @(posedge aclk);
                while (!tready) @(posedge aclk);
            end
            tvalid <= 0;
            tlast <= 0;
        end
    endtask

    // Best first; weights are the softmax of both logits, to a unit in bf16's last place; of equals the lowest.
    reg [20:0] want [0:7];
    initial begin
        want[0] = {1'b0, 16'h3f3b, 4'd15};
        want[1] = {1'b0, 16'h3e8a, 4'd14};
        want[2] = {1'b0, 16'h3f3b, 4'd0};
        want[3] = {1'b0, 16'h3e8a, 4'd1};
        want[4] = {1'b0, 16'h3f3b, 4'd5};
        want[5] = {1'b0, 16'h3e8a, 4'd9};
        want[6] = {1'b0, 16'h3f00, 4'd0};
        want[7] = {1'b1, 16'h3f00, 4'd1};
    end

    integer n = 0, errors = 0, cycle = 0, beats_in = 0, sent = 0, first = 0;
    reg [16:0] off;
    always @(posedge aclk) begin
        cycle <= cycle + 1;
        if (tvalid && tready) begin
            beats_in <= beats_in + 1;
            if (beats_in == 3) sent <= cycle;
        end
        if (ovalid) begin
            if (n == 0) first <= cycle;
            off = odata[19:4] - want[n][19:4] + 17'd1;
            if (odata[3:0] !== want[n][3:0] || off > 2 || olast !== want[n][20] || ouser !== 0 || n > 7) begin
                errors = errors + 1;
                $display("output %0d: expert %0d weight %h last %b", n, odata[3:0], odata[19:4], olast);
            end
            n = n + 1;
        end
    end
    initial begin
        repeat (5) @(posedge aclk);
        aresetn <= 1;
        @(posedge aclk);
        read(12'h000);
        if (got !== 32'h45423031) fail(3);
        write(12'h00C, 3);
        write(12'h004, 3);
        got = 0;
        while (!got[0]) read(12'h008);
        send(0, 0);
        send(17, 0);
        send(40, 0);
        send(63, 1);
        repeat (500) @(posedge aclk);
        read(12'h10C);
        if (got !== 0) errors = errors + 1;
        read(12'h120);
        if (got !== 4) errors = errors + 1;
        if (errors == 0 && n == 8) $display("PASS: first output %0d cycles behind its token", first - sent);
        else $display("FAIL: %0d errors, %0d outputs", errors, n);
        $finish;
    end

    initial begin
        #200000;
        fail(9);
    end
endmodule
